// The CPU scorer without Python, so that it can run under ThreadSanitizer and AddressSanitizer: winners against a
// float64 oracle, and every way of computing them against each other, bit for bit.
#include "scorer/scorer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "scorer/query.h"

namespace {

using rgalign::InstructionSet;
using rgalign::kernels_of;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr InstructionSet kSets[] = {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512};

// A sanitizer makes all of this some ten times slower: it runs a part of the seeds.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr unsigned kSeeds = 40;
#else
constexpr unsigned kSeeds = 200;
#endif

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

struct Answer {
  std::vector<std::int64_t> rows;
  std::vector<float> scores, user_part, query_part;
  std::vector<std::int64_t> num_rescored;

  bool operator==(const Answer& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return rows == other.rows && same(scores, other.scores) && same(user_part, other.user_part) &&
           same(query_part, other.query_part);
  }
};

// A batch and the catalogue it is scored against; fields are changed before run().
struct Problem {
  std::int64_t num_rows, dim, num_sessions, latent_dim, k;
  std::vector<float> rows, user, latents, weight, bias, omega;
  std::vector<std::uint64_t> filters;
  std::vector<std::int32_t> filter_of;
  std::mt19937 random;

  Problem(std::int64_t n, std::int64_t d, std::int64_t b, std::int64_t h, std::int64_t k_, unsigned seed)
      : num_rows(n), dim(d), num_sessions(b), latent_dim(h), k(std::min(k_, n)), random(seed) {
    rows = normal(n * d);
    for (std::int64_t r = 0; r < n; ++r) rgalign::unit(rows.data() + r * d, d, rows.data() + r * d);
    user = normal(b * d);
    latents = normal(b * h);
    weight = normal(d * h);
    bias = normal(d);
    omega.resize(static_cast<std::size_t>(b));
    for (float& each : omega) each = static_cast<float>(random() % 11) / 10.0F;
  }

  std::vector<float> normal(std::int64_t count) {
    std::normal_distribution<float> distribution;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = distribution(random);
    return values;
  }

  rgalign::ScoreInput input() const {
    rgalign::ScoreInput in;
    in.num_sessions = num_sessions;
    in.user = user.data();
    in.omega = omega.data();
    in.latents = latents.empty() ? nullptr : latents.data();
    in.weight = weight.data();
    in.bias = bias.empty() ? nullptr : bias.data();
    in.latent_dim = latent_dim;
    in.filters = filters.empty() ? nullptr : filters.data();
    in.filter_of = filters.empty() ? nullptr : filter_of.data();
    return in;
  }

  Answer run(const rgalign::ScorerIndex& index, InstructionSet set, std::int64_t num_threads, bool int8) const {
    return run(index, input(), set, num_threads, int8);
  }

  Answer run(const rgalign::ScorerIndex& index, const rgalign::ScoreInput& in, InstructionSet set,
             std::int64_t num_threads, bool int8) const {
    Answer answer;
    const auto size = static_cast<std::size_t>(in.num_sessions * k);
    answer.rows.resize(size);
    answer.scores.resize(size);
    answer.user_part.resize(size);
    answer.query_part.resize(size);
    answer.num_rescored.resize(static_cast<std::size_t>(in.num_sessions));
    const rgalign::ScoreOutput out{k,
                                   answer.rows.data(),
                                   answer.scores.data(),
                                   answer.user_part.data(),
                                   answer.query_part.data(),
                                   answer.num_rescored.data()};
    const auto fault = rgalign::score(index, in, out, {kernels_of(set), num_threads, int8});
    require(!fault, "good input has no fault");
    return answer;
  }

  rgalign::ScorerIndex index() const { return rgalign::ScorerIndex(rows.data(), num_rows, dim, true); }
};

// Everything of the definition in float64: [B, N] scores.
struct Oracle {
  std::vector<double> score, user_part, query_part;

  explicit Oracle(const Problem& p) {
    const auto size = static_cast<std::size_t>(p.num_sessions * p.num_rows);
    score.resize(size), user_part.resize(size), query_part.resize(size);
    for (std::int64_t b = 0; b < p.num_sessions; ++b) {
      std::vector<double> user(p.user.begin() + b * p.dim, p.user.begin() + (b + 1) * p.dim);
      unit(user);
      std::vector<double> query(static_cast<std::size_t>(p.dim));
      const auto e = p.latents.begin() + b * p.latent_dim;
      const bool present = std::any_of(e, e + p.latent_dim, [](float x) { return x != 0.0F; });
      for (std::int64_t d = 0; present && d < p.dim; ++d) {
        double& q = query[static_cast<std::size_t>(d)];
        for (std::int64_t h = 0; h < p.latent_dim; ++h) {
          q +=
              static_cast<double>(e[h]) * static_cast<double>(p.weight[static_cast<std::size_t>(d * p.latent_dim + h)]);
        }
        q += p.bias.empty() ? 0.0 : static_cast<double>(p.bias[static_cast<std::size_t>(d)]);
      }
      unit(query);
      const double omega = p.omega[static_cast<std::size_t>(b)];
      for (std::int64_t r = 0; r < p.num_rows; ++r) {
        double user_dot = 0.0, query_dot = 0.0;
        for (std::int64_t d = 0; d < p.dim; ++d) {
          const double value = p.rows[static_cast<std::size_t>(r * p.dim + d)];
          user_dot += user[static_cast<std::size_t>(d)] * value;
          query_dot += query[static_cast<std::size_t>(d)] * value;
        }
        const auto at = static_cast<std::size_t>(b * p.num_rows + r);
        user_part[at] = omega * user_dot;
        query_part[at] = (1.0 - omega) * query_dot;
        score[at] = user_part[at] + query_part[at];
      }
    }
  }

  static void unit(std::vector<double>& x) {
    double sum = 0.0;
    for (const double value : x) sum += value * value;
    const double norm = std::max(std::sqrt(sum), 1e-6);
    for (double& value : x) value /= norm;
  }
};

constexpr double kTolerance = 2e-6;  // largest error of a float32 score, rows of norm 1

bool allowed(const Problem& p, std::int64_t session, std::int64_t row) {
  if (p.filters.empty() || p.filter_of[static_cast<std::size_t>(session)] < 0) return true;
  const std::int64_t words = (p.num_rows + 63) / 64;
  const auto word = static_cast<std::size_t>(p.filter_of[static_cast<std::size_t>(session)] * words + row / 64);
  return (p.filters[word] >> (row % 64) & 1) != 0;
}

void require_right(const Problem& p, const Answer& answer, const std::string& name) {
  const Oracle oracle(p);
  for (std::int64_t b = 0; b < p.num_sessions; ++b) {
    const double* score = oracle.score.data() + b * p.num_rows;
    std::vector<double> ranked;
    for (std::int64_t r = 0; r < p.num_rows; ++r) {
      if (allowed(p, b, r)) ranked.push_back(score[r]);
    }
    std::sort(ranked.begin(), ranked.end(), std::greater<>());
    for (std::int64_t i = 0; i < p.k; ++i) {
      const auto at = static_cast<std::size_t>(b * p.k + i);
      const std::int64_t row = answer.rows[at];
      if (i >= static_cast<std::int64_t>(ranked.size())) {
        require(row == -1 && std::isinf(answer.scores[at]), name + ": padding");
        require(answer.user_part[at] == 0.0F && answer.query_part[at] == 0.0F, name + ": parts of padding");
        continue;
      }
      require(row >= 0 && row < p.num_rows && allowed(p, b, row), name + ": an allowed row");
      const auto cell = static_cast<std::size_t>(b * p.num_rows + row);
      require(std::fabs(answer.scores[at] - score[row]) <= kTolerance, name + ": score");
      require(std::fabs(answer.scores[at] - ranked[static_cast<std::size_t>(i)]) <= kTolerance, name + ": a best row");
      require(std::fabs(answer.user_part[at] - oracle.user_part[cell]) <= kTolerance, name + ": user part");
      require(std::fabs(answer.query_part[at] - oracle.query_part[cell]) <= kTolerance, name + ": query part");
      if (i == 0) continue;
      const bool ordered = answer.scores[at - 1] > answer.scores[at] ||
                           (answer.scores[at - 1] == answer.scores[at] && answer.rows[at - 1] < row);
      require(ordered, name + ": score descending, then row ascending");
    }
  }
}

// The answer of the portable fp32 scan on one thread, after all others have been found equal to it.
Answer same_every_way(const Problem& p, const std::string& name) {
  const rgalign::ScorerIndex index = p.index();
  const Answer expected = p.run(index, InstructionSet::kPortable, 1, false);
  for (const InstructionSet set : kSets) {
    if (kernels_of(set) == nullptr) continue;
    for (const bool int8 : {false, true}) {
      for (const std::int64_t num_threads : {1, 2, 3, 8}) {
        const Answer answer = p.run(index, set, num_threads, int8);
        require(answer == expected, name + ": " + kernels_of(set)->name + (int8 ? " int8, " : " fp32, ") +
                                        std::to_string(num_threads) + " threads");
      }
    }
  }
  return expected;
}

void test_random_problems() {
  std::mt19937 random(1);
  const auto pick = [&](std::initializer_list<int> from) { return from.begin()[random() % from.size()]; };
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    Problem p(pick({1, 2, 31, 32, 33, 64, 97, 513, 1300}), pick({1, 3, 7, 8, 31, 64, 100}), pick({1, 2, 3, 5, 7, 13}),
              pick({1, 8, 17, 40}), pick({1, 3, 10, 64}), seed);
    if (seed % 3 == 0) p.bias.clear();
    if (seed % 2 == 0) {
      const std::int64_t words = (p.num_rows + 63) / 64;
      for (std::int64_t i = 0; i < 3 * words; ++i) {
        const std::uint64_t bits = (std::uint64_t{p.random()} << 32) | p.random();
        p.filters.push_back(i < words ? bits : i < 2 * words ? bits & bits >> 7 & bits >> 13 : 0);
      }
      for (std::int64_t b = 0; b < p.num_sessions; ++b) p.filter_of.push_back(static_cast<int>(p.random() % 4) - 1);
    }
    const std::string name = "random problem " + std::to_string(seed);
    require_right(p, same_every_way(p, name), name);
  }
}

// Catalogues in which everything is close to everything else, and inputs at the ends of their range.
void test_adversarial_problems() {
  for (unsigned seed = 0; seed < kSeeds / 4; ++seed) {
    for (const std::string name : {"one row many times", "copies", "one ulp apart", "zero rows", "one-hot rows",
                                   "huge and tiny inputs", "opposite rows", "zero users and latents"}) {
      Problem p(700, 1 + seed % 40, 5, 9, 1 + seed % 64, seed);
      const auto copy_row = [&](std::int64_t from, std::int64_t to) {
        std::copy_n(p.rows.begin() + from * p.dim, p.dim, p.rows.begin() + to * p.dim);
      };
      for (std::int64_t r = 0; r < p.num_rows; ++r) {
        float* row = p.rows.data() + r * p.dim;
        if (name == "one row many times") copy_row(0, r);
        if (name == "copies") copy_row(r % 7, r);
        if (name == "one ulp apart" && r > 0) {
          copy_row(0, r);
          row[r % p.dim] = std::nextafter(row[r % p.dim], r % 2 == 0 ? 1.0F : -1.0F);
        }
        if (name == "zero rows" && r % 3 != 0) std::fill_n(row, p.dim, r % 2 == 0 ? 0.0F : -0.0F);
        if (name == "one-hot rows") std::fill_n(row, p.dim, 0.0F), row[r % p.dim] = r % 2 == 0 ? 1.0F : -1.0F;
        if (name == "opposite rows" && r % 2 == 1) {
          for (std::int64_t d = 0; d < p.dim; ++d) row[d] = -p.rows[static_cast<std::size_t>((r - 1) * p.dim + d)];
        }
      }
      if (name == "huge and tiny inputs") {
        for (std::size_t i = 0; i < p.user.size(); ++i) p.user[i] *= i / p.dim % 2 == 0 ? 1e38F / 8 : 1e-20F;
        for (float& e : p.latents) e *= 1e18F;
      }
      if (name == "zero users and latents") {
        std::fill_n(p.user.begin(), 2 * p.dim, 0.0F);
        std::fill_n(p.latents.begin(), 3 * p.latent_dim, -0.0F);
      }
      require_right(p, same_every_way(p, name), name);
    }
  }
}

void test_a_batch_is_its_sessions_one_by_one() {
  for (const std::int64_t size : {2, 6, 7, 32, 61}) {
    Problem p(300, 24, size, 19, 5, 7);
    const rgalign::ScorerIndex index = p.index();
    for (const bool int8 : {false, true}) {
      const Answer batch = p.run(index, InstructionSet::kPortable, 3, int8);
      for (std::int64_t b = 0; b < size; ++b) {
        rgalign::ScoreInput one = p.input();
        one.num_sessions = 1;
        one.user += b * p.dim;
        one.omega += b;
        one.latents += b * p.latent_dim;
        for (const InstructionSet set : kSets) {
          if (kernels_of(set) == nullptr) continue;
          const Answer alone = p.run(index, one, set, 1, int8);
          for (std::int64_t i = 0; i < p.k; ++i) {
            const auto at = static_cast<std::size_t>(i);
            const auto there = static_cast<std::size_t>(b * p.k + i);
            require(alone.rows[at] == batch.rows[there] && alone.scores[at] == batch.scores[there] &&
                        alone.user_part[at] == batch.user_part[there] &&
                        alone.query_part[at] == batch.query_part[there],
                    "a session's answer does not depend on its batch");
          }
        }
      }
    }
  }
}

// Without this the int8 scan could be exact by rescoring everything.
void test_the_int8_scan_rescores_few_rows() {
  Problem p(20000, 64, 8, 8, 3, 3);
  const rgalign::ScorerIndex index = p.index();
  for (const InstructionSet set : kSets) {
    if (kernels_of(set) == nullptr) continue;
    for (const std::int64_t rescored : p.run(index, set, 1, true).num_rescored) {
      require(rescored >= p.k && rescored < 200, "between k and 1 % of the rows are rescored");
    }
  }
}

// The bound itself, row by row, on rows made to be hard to quantise.
void test_the_error_bound_holds_and_is_not_idle() {
  std::mt19937 random(5);
  double tightest = std::numeric_limits<double>::infinity();
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    Problem p(64, 1 + static_cast<std::int64_t>(random() % 90), 1, 1, 1, seed);
    for (float& value : p.rows) value = std::ldexp(value, static_cast<int>(random() % 8));
    const float factor = std::ldexp(1.0F, static_cast<int>(seed % 60) - 30);
    for (float& value : p.user) value *= factor;
    const rgalign::ScorerIndex index = p.index();
    const rgalign::Int8Panels& panels = *index.int8();
    for (const int levels : {63, 127}) {
      std::vector<std::uint8_t> bytes(static_cast<std::size_t>(panels.dim8));
      const auto query = rgalign::quantize_query(p.user.data(), p.dim, panels.dim8, levels, bytes.data());
      for (std::int64_t r = 0; r < p.num_rows; ++r) {
        std::int64_t sum = 0;
        double exact = 0.0;
        float chain = 0.0F;
        std::int64_t four[2] = {};
        for (std::int64_t d = 0; d < panels.dim8; ++d) {
          const std::int64_t code =
              panels.codes[static_cast<std::size_t>((r / 32 * panels.dim8 + d / 4 * 4) * 32 + r % 32 * 4 + d % 4)];
          if (d % 8 == 0) four[0] = four[1] = 0;
          four[d % 8 / 2 % 2] += std::abs(code);
          require(std::max(four[0], four[1]) <= rgalign::kMaxFourCodes && std::abs(code) <= rgalign::kMaxCode,
                  "row codes are small enough not to saturate");
          if (d >= p.dim) {
            require(code == 0, "padding is zero");
            continue;
          }
          const auto at = static_cast<std::size_t>(r * p.dim + d);
          sum += code * (bytes[static_cast<std::size_t>(d)] - levels);
          exact += static_cast<double>(p.rows[at]) * static_cast<double>(p.user[static_cast<std::size_t>(d)]);
          chain = std::fma(p.user[static_cast<std::size_t>(d)], p.rows[at], chain);
        }
        const auto at = static_cast<std::size_t>(r);
        const float approximate = static_cast<float>(sum) * panels.row_scales[at];
        const double error = std::fabs(static_cast<double>(chain) - query.scale * static_cast<double>(approximate));
        const double bound = query.error(panels.row_norms[at], panels.row_residuals[at]);
        require(error <= bound, "the error bound holds");
        if (p.dim == 1) tightest = std::min(tightest, bound);
        require(bound <= 0.1 * (std::fabs(exact) + query.scale * levels * 10.0 * panels.row_norms[at]) + 1e-29,
                "the error bound is of use");
      }
    }
  }
  require(tightest < std::numeric_limits<double>::infinity(), "one-dimensional rows were among the seeds");
}

void test_omega_one_does_not_read_the_latent_query() {
  Problem p(200, 16, 3, 12, 4, 11);
  p.omega = {1.0F, 0.5F, 1.0F};
  std::fill_n(p.latents.begin(), p.latent_dim, kNan);
  std::fill_n(p.latents.begin() + 2 * p.latent_dim, p.latent_dim, std::numeric_limits<float>::infinity());
  const rgalign::ScorerIndex index = p.index();
  const Answer answer = p.run(index, InstructionSet::kPortable, 1, true);
  rgalign::ScoreInput without = p.input();
  without.latents = nullptr;
  const Answer user_only = p.run(index, without, InstructionSet::kPortable, 1, true);
  for (const std::size_t b : {std::size_t{0}, std::size_t{2}}) {
    for (std::size_t i = 0; i < 4; ++i) {
      require(answer.rows[b * 4 + i] == user_only.rows[b * 4 + i], "rows of omega = 1");
      require(answer.scores[b * 4 + i] == user_only.scores[b * 4 + i], "scores of omega = 1");
      require(answer.user_part[b * 4 + i] == answer.scores[b * 4 + i], "the user part is all");
      require(answer.query_part[b * 4 + i] == 0.0F, "there is no query part");
    }
  }
}

void test_the_first_fault_is_named() {
  using Kind = rgalign::ScoreFault::Kind;
  const auto fault_of = [](const Problem& p) {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(p.num_sessions * p.k));
    std::vector<float> floats(3 * rows.size());
    std::vector<std::int64_t> rescored(static_cast<std::size_t>(p.num_sessions));
    const rgalign::ScorerIndex index = p.index();
    const rgalign::ScoreOutput out{
        p.k, rows.data(), floats.data(), floats.data() + rows.size(), floats.data() + 2 * rows.size(), rescored.data()};
    return rgalign::score(index, p.input(), out, {&rgalign::best_kernels(), 2, false});
  };
  const Problem good(50, 6, 9, 10, 2, 1);
  require(!fault_of(good), "good input has no fault");
  for (const Kind kind : {Kind::kOmega, Kind::kUser, Kind::kLatent, Kind::kQuery}) {
    Problem p = good;
    std::fill(p.omega.begin(), p.omega.end(), 0.5F);
    for (const std::size_t b : {std::size_t{8}, std::size_t{4}}) {
      if (kind == Kind::kOmega) p.omega[b] = b == 4 ? kNan : 1.5F;
      if (kind == Kind::kUser) p.user[b * 6 + 5] = kNan;
      if (kind == Kind::kLatent) p.latents[b * 10 + 9] = -std::numeric_limits<float>::infinity();
      if (kind == Kind::kQuery) std::fill_n(p.latents.begin() + static_cast<std::int64_t>(b) * 10, 10, 3e38F);
    }
    const auto fault = fault_of(p);
    require(fault && fault->kind == kind && fault->session == 4, "the first fault is named");
  }
  Problem p = good;
  p.rows[13] = kNan;
  const auto fault = rgalign::ScorerIndex::check(p.rows.data(), p.num_rows, p.dim);
  require(fault && fault->row == 2 && fault->column == 1, "the catalogue's first fault is named");
}

void test_callers_may_share_an_index() {
  const Problem p(3000, 32, 9, 8, 3, 21);
  const rgalign::ScorerIndex index = p.index();
  const Answer expected = p.run(index, InstructionSet::kPortable, 1, false);
  std::vector<std::thread> callers;
  std::atomic<int> equal{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 20; ++i) {
        const InstructionSet set =
            kernels_of(InstructionSet::kAvx2) ? InstructionSet::kAvx2 : InstructionSet::kPortable;
        if (p.run(index, set, 1 + caller, i % 2 == 0) == expected) ++equal;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  require(equal == 80, "every caller's answer is the same");
}

void test_the_pool_runs_every_chunk_once() {
  rgalign::ThreadPool pool(3);
  for (int repeat = 0; repeat < 300; ++repeat) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(repeat % 17));
    std::vector<std::int64_t> last(4, -1);
    std::atomic<bool> ascending{true};
    pool.run(repeat % 17, 1 + repeat % 6, [&](std::int64_t chunk, std::int64_t seat) {
      ++runs[static_cast<std::size_t>(chunk)];
      if (last[static_cast<std::size_t>(seat)] >= chunk) ascending = false;
      last[static_cast<std::size_t>(seat)] = chunk;
    });
    for (const std::atomic<int>& count : runs) require(count == 1, "every chunk runs once");
    require(ascending, "a seat's chunks ascend");
  }
}

}  // namespace

int main() {
  std::printf("instruction sets:");
  for (const InstructionSet set : kSets) std::printf(" %s", kernels_of(set) ? kernels_of(set)->name : "-");
  std::puts("");
  test_the_pool_runs_every_chunk_once();
  test_the_error_bound_holds_and_is_not_idle();
  test_random_problems();
  test_adversarial_problems();
  test_a_batch_is_its_sessions_one_by_one();
  test_the_int8_scan_rescores_few_rows();
  test_omega_one_does_not_read_the_latent_query();
  test_the_first_fault_is_named();
  test_callers_may_share_an_index();
  std::puts("ok");
}
