// From a batch's inputs to what the scan multiplies with the catalogue: û, q̂ and the fused vector of every session.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/thread_pool.h"
#include "scorer/scorer.h"

namespace rgalign {

// out = x / max(||x||, 1e-6), in float64, rounded once. `out` may be x.
void unit(const float* x, std::int64_t dim, float* out);

struct Queries {
  std::int64_t dim = 0;
  std::vector<float> user;      // [B, D] û
  std::vector<float> query;     // [B, D] q̂, 0 where there is none; empty when no session has one
  std::vector<float> fused;     // [B, D] v
  std::vector<bool> has_query;  // [B] whether q̂ counts: ω < 1 and e is not all zero
};

struct QueriesOrFault {
  Queries queries;
  std::optional<ScoreFault> fault;
};

QueriesOrFault make_queries(const ScoreInput& input, std::int64_t dim, const ScoreOptions& options, ThreadPool& pool);

// A fused vector in integers: v = scale * codes + residual, codes in [-levels, levels].
struct QuantizedQuery {
  double scale = 1.0;
  // |score - scale * row_scale * (codes . row codes), as computed| <= per_norm * ||row|| + per_residual * ||row
  // residual||
  // + kTinyError, with `score` the fp32 chain of kernels.h.
  double per_norm = 0.0;
  double per_residual = 0.0;
  static constexpr double kTinyError = 1e-30;

  double error(double norm, double residual) const { return per_norm * norm + per_residual * residual + kTinyError; }
};

// Writes codes + levels as bytes [dim8]; the bytes beyond `dim` are 0.
QuantizedQuery quantize_query(const float* v, std::int64_t dim, std::int64_t dim8, int levels, std::uint8_t* bytes);

}  // namespace rgalign
