#include "scorer/scorer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/float_environment.h"
#include "base/thread_pool.h"
#include "scorer/query.h"
#include "scorer/survivors.h"
#include "topk/winners.h"

namespace rgalign {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

int lowest_bit(std::uint32_t mask) { return __builtin_ctz(mask); }

// Which rows of a panel a session may be given.
class Allowed {
 public:
  Allowed(const ScoreInput& input, std::int64_t num_rows) : input_(input), num_rows_(num_rows) {}

  std::uint32_t operator()(std::int64_t session, std::int64_t panel) const {
    static_assert(kPanelRows == 32);
    const std::int64_t left = num_rows_ - panel * kPanelRows;
    const std::uint32_t there = left >= kPanelRows ? ~0U : (1U << left) - 1;
    if (input_.filter_of == nullptr || input_.filter_of[session] < 0) return there;
    const std::int64_t words = divide_up(num_rows_, 64);
    const std::uint64_t word = input_.filters[input_.filter_of[session] * words + panel / 2];
    return there & static_cast<std::uint32_t>(word >> (panel % 2 * kPanelRows));
  }

 private:
  const ScoreInput& input_;
  std::int64_t num_rows_;
};

// The sessions of a batch in tiles that are scored together, as even in size as can be.
class Tiles {
 public:
  Tiles(std::int64_t num_sessions, int largest)
      : num_sessions_(num_sessions), count_(divide_up(num_sessions, largest)) {}

  std::int64_t count() const { return count_; }
  std::int64_t first(std::int64_t tile) const { return num_sessions_ * tile / count_; }
  int size(std::int64_t tile) const { return static_cast<int>(first(tile + 1) - first(tile)); }

 private:
  std::int64_t num_sessions_;
  std::int64_t count_;
};

// Divides (groups of panels) x (tiles of sessions) into chunks: by the catalogue, so that each panel is read by one
// core only; a catalogue too small for that is divided by sessions as well.
struct Grid {
  std::int64_t group_chunks;
  std::int64_t tile_chunks;

  Grid(std::int64_t num_groups, std::int64_t num_tiles, std::int64_t num_threads) {
    constexpr std::int64_t kChunksPerThread = 4;  // a thread that is held up leaves its share to the others
    const std::int64_t wanted = num_threads == 1 ? 1 : num_threads * kChunksPerThread;
    group_chunks = std::min(num_groups, wanted);
    tile_chunks = std::min(num_tiles, divide_up(wanted, group_chunks));
  }
  std::int64_t count() const { return group_chunks * tile_chunks; }
};

// What both scans are made of.
struct Job {
  const ScorerIndex& index;
  const ScoreInput& input;
  const Queries& queries;
  const Kernels& kernels;
  Allowed allowed;
  std::size_t k;

  const float* fused(std::int64_t session) const { return queries.fused.data() + session * queries.dim; }
};

class Fp32Scan {
 public:
  Fp32Scan(const Job& job, std::int64_t num_seats)
      : job_(job),
        tiles_(job.input.num_sessions, job.kernels.fp32_tile_queries),
        packed_(static_cast<std::size_t>(job.input.num_sessions * job.queries.dim)) {
    const std::int64_t dim = job.queries.dim;
    for (std::int64_t tile = 0; tile < tiles_.count(); ++tile) {
      const int size = tiles_.size(tile);
      float* out = packed_.data() + tiles_.first(tile) * dim;
      for (int q = 0; q < size; ++q) {
        const float* v = job.fused(tiles_.first(tile) + q);
        for (std::int64_t d = 0; d < dim; ++d) out[d * size + q] = v[d];
      }
    }
    const auto states = static_cast<std::size_t>(num_seats * job.input.num_sessions);
    winners_.reserve(states);
    for (std::size_t i = 0; i < states; ++i) winners_.emplace_back(job.k);
    const std::int64_t panel_bytes = dim * kPanelRows * static_cast<std::int64_t>(sizeof(float));
    group_panels_ = std::max<std::int64_t>(kGroupBytes / panel_bytes, 4);
  }

  std::int64_t num_groups() const { return divide_up(job_.index.fp32().num_panels, group_panels_); }
  std::int64_t num_tiles() const { return tiles_.count(); }

  // Groups stay in the core's cache while all tiles pass over them.
  void run(std::int64_t first_group, std::int64_t last_group, std::int64_t first_tile, std::int64_t last_tile,
           std::int64_t seat) {
    for (std::int64_t group = first_group; group < last_group; ++group) {
      const std::int64_t begin = group * group_panels_;
      const std::int64_t end = std::min(begin + group_panels_, job_.index.fp32().num_panels);
      for (std::int64_t tile = first_tile; tile < last_tile; ++tile) scan(tile, begin, end, seat);
    }
  }

  Winners& finish(std::int64_t session, std::int64_t num_seats, std::int64_t* num_rescored) {
    Winners& winners = winners_[static_cast<std::size_t>(session)];
    for (std::int64_t seat = 1; seat < num_seats; ++seat) winners.offer_all(of(seat, session));
    *num_rescored = 0;
    return winners;
  }

 private:
  static constexpr std::int64_t kGroupBytes = 1 << 17;

  Winners& of(std::int64_t seat, std::int64_t session) {
    return winners_[static_cast<std::size_t>(seat * job_.input.num_sessions + session)];
  }

  void scan(std::int64_t tile_number, std::int64_t begin, std::int64_t end, std::int64_t seat) {
    const std::int64_t first = tiles_.first(tile_number);
    const int size = tiles_.size(tile_number);
    float thresholds[kMaxTileQueries];
    for (int q = 0; q < size; ++q) thresholds[q] = of(seat, first + q).threshold();
    const Fp32Tile tile{job_.index.fp32().values.data(), job_.queries.dim, packed_.data() + first * job_.queries.dim,
                        size, thresholds};
    Hit hit;
    for (std::int64_t from = begin; job_.kernels.next_hit_fp32(tile, from, end, hit); from = hit.panel + hit.span) {
      for (int slot = 0; slot < hit.span * size; ++slot) {
        if (hit.masks[slot] == 0) continue;
        const int q = slot % size;
        const std::int64_t panel = hit.panel + slot / size;
        Winners& winners = of(seat, first + q);
        std::uint32_t mask = hit.masks[slot] & job_.allowed(first + q, panel);
        for (; mask != 0; mask &= mask - 1) {
          const int lane = lowest_bit(mask);
          winners.offer(Entry{hit.scores[slot][lane], panel * kPanelRows + lane});
        }
        thresholds[q] = winners.threshold();
      }
    }
  }

  const Job& job_;
  Tiles tiles_;
  std::vector<float> packed_;     // tile by tile, [dim][size of the tile]
  std::vector<Winners> winners_;  // [seat][session]
  std::int64_t group_panels_;
};

class Int8Scan {
 public:
  Int8Scan(const Job& job, std::int64_t num_seats)
      : job_(job),
        panels_(*job.index.int8()),
        exact_(job.kernels, job.index),
        tiles_(job.input.num_sessions, job.kernels.int8_tile_queries),
        packed_(static_cast<std::size_t>(job.input.num_sessions * panels_.dim8 / 4)) {
    const std::int64_t words = panels_.dim8 / 4;
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(panels_.dim8));
    for (std::int64_t tile = 0; tile < tiles_.count(); ++tile) {
      const int size = tiles_.size(tile);
      std::uint32_t* out = packed_.data() + tiles_.first(tile) * words;
      for (int q = 0; q < size; ++q) {
        quantized_.push_back(quantize_query(job.fused(tiles_.first(tile) + q), job.queries.dim, panels_.dim8,
                                            job.kernels.query_levels, bytes.data()));
        for (std::int64_t w = 0; w < words; ++w) {
          const std::uint8_t* four = bytes.data() + 4 * w;
          std::copy(four, four + 4, reinterpret_cast<std::uint8_t*>(out + w * size + q));
        }
      }
    }
    const auto states = static_cast<std::size_t>(num_seats * job.input.num_sessions);
    survivors_.reserve(states);
    for (std::size_t i = 0; i < states; ++i) survivors_.emplace_back(job.k);
  }

  std::int64_t num_groups() const { return divide_up(job_.index.fp32().num_panels, Int8Panels::kGroupPanels); }
  std::int64_t num_tiles() const { return tiles_.count(); }

  void run(std::int64_t first_group, std::int64_t last_group, std::int64_t first_tile, std::int64_t last_tile,
           std::int64_t seat) {
    for (std::int64_t group = first_group; group < last_group; ++group) {
      for (std::int64_t tile = first_tile; tile < last_tile; ++tile) scan(tile, group, seat);
    }
  }

  Winners& finish(std::int64_t session, std::int64_t num_seats, std::int64_t* num_rescored) {
    Survivors& survivors = survivors_[static_cast<std::size_t>(session)];
    for (std::int64_t seat = 1; seat < num_seats; ++seat) survivors.merge(of(seat, session));
    Winners& winners = survivors.finish(exact_, job_.fused(session));
    *num_rescored = survivors.num_rescored();
    return winners;
  }

 private:
  Survivors& of(std::int64_t seat, std::int64_t session) {
    return survivors_[static_cast<std::size_t>(seat * job_.input.num_sessions + session)];
  }

  // What the kernel's score must exceed for a row whose bound is within `error` to survive. The last term is more than
  // the quotient's rounding to float32; `error` has room for that of the difference.
  static float pass_above(double threshold, double error, double scale) {
    const double quotient = (threshold - error) / scale;
    return static_cast<float>(quotient - 1e-6 * std::fabs(quotient));
  }

  void scan(std::int64_t tile_number, std::int64_t group, std::int64_t seat) {
    const std::int64_t begin = group * Int8Panels::kGroupPanels;
    const std::int64_t end = std::min(begin + Int8Panels::kGroupPanels, job_.index.fp32().num_panels);
    const std::int64_t first = tiles_.first(tile_number);
    const int size = tiles_.size(tile_number);
    const auto at = static_cast<std::size_t>(group);
    float thresholds[kMaxTileQueries];
    double errors[kMaxTileQueries];  // largest of the group
    for (int q = 0; q < size; ++q) {
      const QuantizedQuery& query = quantized_[static_cast<std::size_t>(first + q)];
      errors[q] = query.error(panels_.group_norms[at], panels_.group_residuals[at]);
      thresholds[q] = pass_above(of(seat, first + q).threshold(), errors[q], query.scale);
    }
    const Int8Tile tile{panels_.codes.data(),
                        panels_.row_sums.data(),
                        panels_.row_scales.data(),
                        panels_.dim8,
                        packed_.data() + first * panels_.dim8 / 4,
                        size,
                        thresholds};
    Hit hit;
    for (std::int64_t from = begin; job_.kernels.next_hit_int8(tile, from, end, hit); from = hit.panel + hit.span) {
      for (int slot = 0; slot < hit.span * size; ++slot) {
        if (hit.masks[slot] == 0) continue;
        const int q = slot % size;
        const std::int64_t session = first + q;
        const std::int64_t panel = hit.panel + slot / size;
        const QuantizedQuery& query = quantized_[static_cast<std::size_t>(session)];
        Survivors& survivors = of(seat, session);
        std::uint32_t mask = hit.masks[slot] & job_.allowed(session, panel);
        for (; mask != 0; mask &= mask - 1) {
          const int lane = lowest_bit(mask);
          const std::int64_t row = panel * kPanelRows + lane;
          const auto r = static_cast<std::size_t>(row);
          const double score = query.scale * static_cast<double>(hit.scores[slot][lane]);
          const double error = query.error(panels_.row_norms[r], panels_.row_residuals[r]);
          survivors.offer(row, score - error, score + error, exact_, job_.fused(session));
        }
        thresholds[q] = pass_above(survivors.threshold(), errors[q], query.scale);
      }
    }
  }

  const Job& job_;
  const Int8Panels& panels_;
  ExactScorer exact_;
  Tiles tiles_;
  std::vector<std::uint32_t> packed_;  // tile by tile, [dim8 / 4][size of the tile]
  std::vector<QuantizedQuery> quantized_;
  std::vector<Survivors> survivors_;  // [seat][session]
};

// The parts of a session's winners, from dot products of their own.
void write_parts(const Job& job, const ScoreOutput& output, std::int64_t session) {
  const std::int64_t* rows = output.rows + session * output.k;
  const float* scores = output.scores + session * output.k;
  float* user_part = output.user_part + session * output.k;
  float* query_part = output.query_part + session * output.k;
  std::fill(user_part, user_part + output.k, 0.0F);
  std::fill(query_part, query_part + output.k, 0.0F);
  const std::int64_t filled = std::count_if(rows, rows + output.k, [](std::int64_t row) { return row >= 0; });
  const double omega = job.input.latents == nullptr ? 1.0 : static_cast<double>(job.input.omega[session]);
  if (omega == 1.0) {
    std::copy(scores, scores + filled, user_part);
    return;
  }
  // User and query products of four winners at a time.
  static_assert(kMaxDots == 8);
  const bool has_query = job.queries.has_query[static_cast<std::size_t>(session)];
  const float* user = job.queries.user.data() + session * job.queries.dim;
  const float* query = has_query ? job.queries.query.data() + session * job.queries.dim : nullptr;
  for (std::int64_t done = 0; done < filled; done += 4) {
    const float* vectors[kMaxDots];
    const float* starts[kMaxDots];
    float products[kMaxDots];
    const int count = static_cast<int>(std::min<std::int64_t>(4, filled - done));
    for (int i = 0; i < count; ++i) {
      vectors[i] = user;
      vectors[count + i] = query;
      starts[i] = starts[count + i] = job.index.fp32().row(rows[done + i]);
    }
    job.kernels.dots(vectors, starts, kPanelRows, has_query ? 2 * count : count, job.queries.dim, products);
    for (int i = 0; i < count; ++i) {
      user_part[done + i] = static_cast<float>(omega * products[i]);
      if (has_query) query_part[done + i] = static_cast<float>((1.0 - omega) * products[count + i]);
    }
  }
}

template <class Scan>
void scan_and_finish(const Job& job, const ScoreOutput& output, std::int64_t num_threads, ThreadPool& pool) {
  Scan scan(job, num_threads);
  const Grid grid(scan.num_groups(), scan.num_tiles(), num_threads);
  pool.run(grid.count(), num_threads, [&](std::int64_t chunk, std::int64_t seat) {
    const DefaultFloatEnvironment environment;
    const std::int64_t groups = chunk % grid.group_chunks;  // ascending for a seat within a tile chunk, as rows must be
    const std::int64_t tiles = chunk / grid.group_chunks;
    scan.run(scan.num_groups() * groups / grid.group_chunks, scan.num_groups() * (groups + 1) / grid.group_chunks,
             scan.num_tiles() * tiles / grid.tile_chunks, scan.num_tiles() * (tiles + 1) / grid.tile_chunks, seat);
  });
  constexpr std::int64_t kSessionsPerChunk = 8;
  const std::int64_t num_sessions = job.input.num_sessions;
  pool.run(divide_up(num_sessions, kSessionsPerChunk), num_threads, [&](std::int64_t chunk, std::int64_t) {
    const DefaultFloatEnvironment environment;
    const std::int64_t end = std::min((chunk + 1) * kSessionsPerChunk, num_sessions);
    for (std::int64_t session = chunk * kSessionsPerChunk; session < end; ++session) {
      Winners& winners = scan.finish(session, num_threads, output.num_rescored + session);
      winners.write(output.rows + session * output.k, output.scores + session * output.k);
      write_parts(job, output, session);
    }
  });
}

}  // namespace

std::optional<ScoreFault> score(const ScorerIndex& index, const ScoreInput& input, const ScoreOutput& output,
                                const ScoreOptions& options) {
  if (input.num_sessions == 0) return std::nullopt;
  const DefaultFloatEnvironment environment;
  ThreadPool& pool = shared_pool();
  const std::int64_t num_threads = std::min(options.num_threads, pool.max_threads());
  const QueriesOrFault made = make_queries(input, index.fp32().dim, options, pool);
  if (made.fault) return made.fault;
  const Job job{index,
                input,
                made.queries,
                *options.kernels,
                Allowed(input, index.fp32().num_rows),
                static_cast<std::size_t>(output.k)};
  if (options.int8) {
    scan_and_finish<Int8Scan>(job, output, num_threads, pool);
  } else {
    scan_and_finish<Fp32Scan>(job, output, num_threads, pool);
  }
  return std::nullopt;
}

}  // namespace rgalign
