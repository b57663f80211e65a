// What an approximate scan keeps for one session: every row that may still be among the k best, and no more of them at
// a time than a fixed number, however many tie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "scorer/index.h"
#include "scorer/kernels.h"
#include "topk/winners.h"

namespace rgalign {

// Scores rows exactly: the same chain of multiply-adds as an fp32 scan, so the same bits.
class ExactScorer {
 public:
  ExactScorer(const Kernels& kernels, const ScorerIndex& index)
      : kernels_(kernels), rows_(index.int8()->rows.data()), dim_(index.fp32().dim) {}

  // out[i] = query · row(rows[i]); count <= kMaxDots.
  void operator()(const float* query, const std::int64_t* rows, int count, float* out) const {
    const float* queries[kMaxDots];
    const float* starts[kMaxDots];
    for (int i = 0; i < count; ++i) {
      queries[i] = query;
      starts[i] = rows_ + rows[i] * dim_;
    }
    kernels_.dots(queries, starts, 1, count, dim_, out);
  }

 private:
  const Kernels& kernels_;
  const float* rows_;  // [N][D]
  std::int64_t dim_;
};

class Survivors {
 public:
  explicit Survivors(std::size_t k);

  // No row whose upper bound is below this can be among the k best.
  double threshold() const { return threshold_; }

  // A row of the scan, known to score within [lower, upper] exactly. Rows come in ascending order. May rescore what
  // has gathered, with `query` the session's fused vector.
  void offer(std::int64_t row, double lower, double upper, const ExactScorer& exact, const float* query);

  // Adds another thread's survivors of other rows.
  void merge(const Survivors& other);

  // Rescores what still can win, best bound first, and returns the winners.
  Winners& finish(const ExactScorer& exact, const float* query);

  std::int64_t num_rescored() const { return num_rescored_; }

 private:
  struct Candidate {
    double upper;
    std::int64_t row;
  };

  void offer_lower_bound(double lower);
  void drop_losers();
  void rescore_pending(const ExactScorer& exact, const float* query);

  std::size_t k_;
  std::size_t capacity_;
  double threshold_;                  // the k-th best score is at least this
  Winners winners_;                   // of the rows scored exactly
  std::vector<double> lower_bounds_;  // heap of the k best lower bounds of different rows, the least on top
  std::vector<Candidate> pending_;    // rows not scored exactly yet
  std::int64_t num_rescored_ = 0;
};

}  // namespace rgalign
