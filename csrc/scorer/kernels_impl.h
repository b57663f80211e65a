// The loops of kernels.h over a type `Lanes` that names one instruction set's registers. Included by one .cpp
// per set, after its `#pragma GCC target`; everything is in an unnamed namespace, so no set's code can be linked into
// another's. No standard library code may be called here, for the same reason.
#include "scorer/kernels.h"

namespace rgalign {
namespace {

// Scores Q queries with V vectors of lanes in each of P panels. `rows` points at the first lane wanted.
template <class Lanes, int Q, int V, int P>
inline void score_fp32(const float* rows, std::int64_t dim, const float* queries, const float* thresholds, int lane,
                       Hit& hit) {
  typename Lanes::Float sums[P * V][Q];
#pragma GCC unroll 8
  for (int v = 0; v < P * V; ++v) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) sums[v][q] = Lanes::zero();
  }
  const std::int64_t panel_size = dim * kPanelRows;
  for (std::int64_t d = 0; d < dim; ++d) {
    const auto row = [&](int v) {
      return Lanes::load(rows + (v / V) * panel_size + d * kPanelRows + (v % V) * Lanes::kWidth);
    };
    // Whichever there are fewer of is held in registers, or sums would have to leave them.
    if constexpr (Q <= P * V) {
      typename Lanes::Float query[Q];
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) query[q] = Lanes::broadcast(queries + d * Q + q);
#pragma GCC unroll 8
      for (int v = 0; v < P * V; ++v) {
        const auto lanes = row(v);
#pragma GCC unroll 8
        for (int q = 0; q < Q; ++q) sums[v][q] = Lanes::fma(query[q], lanes, sums[v][q]);
      }
    } else {
      typename Lanes::Float lanes[P * V];
#pragma GCC unroll 8
      for (int v = 0; v < P * V; ++v) lanes[v] = row(v);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        const auto query = Lanes::broadcast(queries + d * Q + q);
#pragma GCC unroll 8
        for (int v = 0; v < P * V; ++v) sums[v][q] = Lanes::fma(query, lanes[v], sums[v][q]);
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < P * V; ++v) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const int slot = (v / V) * Q + q;
      const int first = lane + (v % V) * Lanes::kWidth;
      Lanes::store(hit.scores[slot] + first, sums[v][q]);
      hit.masks[slot] |= Lanes::above(sums[v][q], Lanes::broadcast(thresholds + q)) << first;
    }
  }
}

template <class Lanes, int Q, int V, int P>
inline void score_int8(const std::int8_t* rows, const std::int32_t* row_sums, const float* row_scales,
                       const Int8Tile& tile, int lane, Hit& hit) {
  typename Lanes::Int sums[P * V][Q];
#pragma GCC unroll 8
  for (int v = 0; v < P * V; ++v) {
    // Query codes are shifted up by query_levels to be unsigned; this takes it off again.
    const std::int64_t at = (v / V) * kPanelRows + (v % V) * Lanes::kWidth;
    const auto start = Lanes::negative_product(Lanes::load_int(row_sums + at), Lanes::kQueryLevels);
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) sums[v][q] = start;
  }
  const std::int64_t panel_size = tile.dim8 * kPanelRows;
  constexpr std::int64_t kStep = 4 * kPanelRows;  // bytes of four coordinates of a panel
  for (std::int64_t d4 = 0; d4 < tile.dim8 / 4; d4 += 2) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const auto low = Lanes::broadcast_int(tile.queries + d4 * Q + q);
      const auto high = Lanes::broadcast_int(tile.queries + (d4 + 1) * Q + q);
#pragma GCC unroll 8
      for (int v = 0; v < P * V; ++v) {
        const std::int8_t* row = rows + (v / V) * panel_size + d4 * kStep + (v % V) * 4 * Lanes::kWidth;
        sums[v][q] = Lanes::dot_eight(sums[v][q], low, Lanes::load_int(row), high, Lanes::load_int(row + kStep));
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < P * V; ++v) {
    const auto scale = Lanes::load(row_scales + (v / V) * kPanelRows + (v % V) * Lanes::kWidth);
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const int slot = (v / V) * Q + q;
      const int first = lane + (v % V) * Lanes::kWidth;
      const auto score = Lanes::multiply(Lanes::to_float(sums[v][q]), scale);
      Lanes::store(hit.scores[slot] + first, score);
      hit.masks[slot] |= Lanes::above(score, Lanes::broadcast(tile.thresholds + q)) << first;
    }
  }
}

inline bool any(const Hit& hit, int slots) {
  std::uint32_t found = 0;
  for (int slot = 0; slot < slots; ++slot) found |= hit.masks[slot];
  return found != 0;
}

// Steps through the panels, P at a time, each in parts of V vectors; stops at the first with a hit.
template <class Lanes, int Q, int V, int P>
inline bool scan_fp32(const Fp32Tile& tile, std::int64_t begin, std::int64_t end, Hit& hit) {
  const std::int64_t panel_size = tile.dim * kPanelRows;
  for (std::int64_t panel = begin; panel + P <= end; panel += P) {
    hit.panel = panel;
    hit.span = P;
    for (int slot = 0; slot < P * Q; ++slot) hit.masks[slot] = 0;
    for (int lane = 0; lane < kPanelRows; lane += V * Lanes::kWidth) {
      score_fp32<Lanes, Q, V, P>(tile.panels + panel * panel_size + lane, tile.dim, tile.queries, tile.thresholds, lane,
                                 hit);
    }
    if (any(hit, P * Q)) return true;
  }
  hit.panel = end - (end - begin) % P;  // what is left is less than P panels
  return false;
}

template <class Lanes, int Q, int V, int P>
inline bool scan_int8(const Int8Tile& tile, std::int64_t begin, std::int64_t end, Hit& hit) {
  const std::int64_t panel_size = tile.dim8 * kPanelRows;
  for (std::int64_t panel = begin; panel + P <= end; panel += P) {
    hit.panel = panel;
    hit.span = P;
    for (int slot = 0; slot < P * Q; ++slot) hit.masks[slot] = 0;
    for (int lane = 0; lane < kPanelRows; lane += V * Lanes::kWidth) {
      const std::int64_t row = panel * kPanelRows + lane;
      score_int8<Lanes, Q, V, P>(tile.panels + panel * panel_size + 4 * lane, tile.row_sums + row,
                                 tile.row_scales + row, tile, lane, hit);
    }
    if (any(hit, P * Q)) return true;
  }
  hit.panel = end - (end - begin) % P;
  return false;
}

// Tile shapes: the sums of a tile, and a few more, fit the registers. A single query takes several panels at once, or
// its few chains of additions would wait for each other.
template <class Lanes>
bool next_hit_fp32(const Fp32Tile& tile, std::int64_t begin, std::int64_t end, Hit& hit) {
  constexpr int kWhole = Lanes::kPanelVectors;
  constexpr int kPart = Lanes::kPartVectors;
  switch (tile.num_queries) {
    case 1:
      if (scan_fp32<Lanes, 1, kWhole, Lanes::kSpan>(tile, begin, end, hit)) return true;
      return scan_fp32<Lanes, 1, kWhole, 1>(tile, hit.panel, end, hit);
    case 2:
      return scan_fp32<Lanes, 2, kWhole, 1>(tile, begin, end, hit);
    case 3:
      return scan_fp32<Lanes, 3, kWhole, 1>(tile, begin, end, hit);
    case 4:
      return scan_fp32<Lanes, 4, kPart, 1>(tile, begin, end, hit);
    case 5:
      return scan_fp32<Lanes, 5, kPart, 1>(tile, begin, end, hit);
    default:
      return scan_fp32<Lanes, 6, kPart, 1>(tile, begin, end, hit);
  }
}

template <class Lanes>
bool next_hit_int8(const Int8Tile& tile, std::int64_t begin, std::int64_t end, Hit& hit) {
  constexpr int kWhole = Lanes::kPanelVectors;
  constexpr int kPart = Lanes::kPartVectors;
  switch (tile.num_queries) {
    case 1:
      if (scan_int8<Lanes, 1, kWhole, Lanes::kSpan>(tile, begin, end, hit)) return true;
      return scan_int8<Lanes, 1, kWhole, 1>(tile, hit.panel, end, hit);
    case 2:
      return scan_int8<Lanes, 2, kPart, 1>(tile, begin, end, hit);
    case 3:
      return scan_int8<Lanes, 3, kPart, 1>(tile, begin, end, hit);
    default:
      return scan_int8<Lanes, 4, kPart, 1>(tile, begin, end, hit);
  }
}

// Scalar chains: their rows lie anywhere, so there is nothing to load as a vector. Several at once, or each addition
// would wait for the last; places that are not wanted repeat the first.
template <class Lanes, int Count>
inline void chains(const float* const* queries, const float* const* rows, std::int64_t stride, int count,
                   std::int64_t dim, float* out) {
  const float* query[Count];
  const float* row[Count];
  float sums[Count];
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    query[i] = queries[i < count ? i : 0];
    row[i] = rows[i < count ? i : 0];
    sums[i] = 0.0F;
  }
  for (std::int64_t d = 0; d < dim; ++d) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) sums[i] = Lanes::fma_one(query[i][d], row[i][d * stride], sums[i]);
  }
  for (int i = 0; i < count; ++i) out[i] = sums[i];
}

template <class Lanes>
void dots(const float* const* queries, const float* const* rows, std::int64_t stride, int count, std::int64_t dim,
          float* out) {
  if (count > 4) {
    chains<Lanes, kMaxDots>(queries, rows, stride, count, dim, out);
  } else if (count > 0) {
    chains<Lanes, 4>(queries, rows, stride, count, dim, out);
  }
}

template <class Lanes, int R, int Q>
inline void project_block(const float* weight, std::int64_t width, const float* const* inputs, float* out,
                          std::int64_t out_stride) {
  typename Lanes::Eight sums[R][Q];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) sums[r][q] = Lanes::zero_eight();
  }
  const std::int64_t whole = width - width % 8;
  for (std::int64_t h = 0; h < whole; h += 8) {
    typename Lanes::Eight input[Q];
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) input[q] = Lanes::load_eight(inputs[q] + h);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto row = Lanes::load_eight(weight + r * width + h);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) sums[r][q] = Lanes::fma_eight(input[q], row, sums[r][q]);
    }
  }
  if (whole < width) {  // the last, incomplete eight, filled up with zeros
    for (int r = 0; r < R; ++r) {
      alignas(32) float row[8] = {};
      for (std::int64_t h = whole; h < width; ++h) row[h - whole] = weight[r * width + h];
      for (int q = 0; q < Q; ++q) {
        alignas(32) float input[8] = {};
        for (std::int64_t h = whole; h < width; ++h) input[h - whole] = inputs[q][h];
        sums[r][q] = Lanes::fma_eight(Lanes::load_eight(input), Lanes::load_eight(row), sums[r][q]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) out[q * out_stride + r] = Lanes::sum_eight(sums[r][q]);
  }
}

template <class Lanes, int R, int Q>
inline void project_blocks(const float* weight, std::int64_t num_rows, std::int64_t width, const float* const* inputs,
                           float* out, std::int64_t out_stride) {
  std::int64_t row = 0;
  for (; row + R <= num_rows; row += R) {
    project_block<Lanes, R, Q>(weight + row * width, width, inputs, out + row, out_stride);
  }
  for (; row < num_rows; ++row) {
    project_block<Lanes, 1, Q>(weight + row * width, width, inputs, out + row, out_stride);
  }
}

template <class Lanes>
void project(const float* weight, std::int64_t num_rows, std::int64_t width, const float* const* inputs, int count,
             float* out, std::int64_t out_stride) {
  if (count == 1) {
    project_blocks<Lanes, 8, 1>(weight, num_rows, width, inputs, out, out_stride);
  } else if (count == 2) {
    project_blocks<Lanes, 4, 2>(weight, num_rows, width, inputs, out, out_stride);
  } else {
    project_blocks<Lanes, 4, 3>(weight, num_rows, width, inputs, out, out_stride);
  }
}

template <class Lanes>
constexpr Kernels kernels(const char* name) {
  return {name,         kMaxTileQueries, 4, Lanes::kQueryLevels, &next_hit_fp32<Lanes>, &next_hit_int8<Lanes>,
          &dots<Lanes>, &project<Lanes>};
}

}  // namespace
}  // namespace rgalign
