// Scores sessions against the whole catalogue and keeps the k best of each: exact, and bitwise the same for any batch,
// number of threads, instruction set and scan. docs/cpu_scorer.md is the definition of every number.
//
//   û = unit(user)   q̂ = unit(W e + b)   v = ω û + (1 − ω) q̂   score = v · î   parts: ω û·î and (1 − ω) q̂·î
#pragma once

#include <cstdint>
#include <optional>

#include "scorer/index.h"
#include "scorer/kernels.h"

namespace rgalign {

constexpr std::int64_t kMaxWinners = 64;

// Pointers are borrowed for the length of the call. All arrays are row-major.
struct ScoreInput {
  std::int64_t num_sessions = 0;            // B
  const float* user = nullptr;              // [B, D]
  const float* omega = nullptr;             // [B], each in [0, 1]
  const float* latents = nullptr;           // [B, H]; nullptr: ω = 1 for all. Not read where ω = 1
  const float* weight = nullptr;            // [D, H]; needed with latents
  const float* bias = nullptr;              // [D], or nullptr for 0
  std::int64_t latent_dim = 0;              // H
  const std::uint64_t* filters = nullptr;   // [F, ceil(N / 64)]; bit r % 64 of word r / 64 allows row r
  const std::int32_t* filter_of = nullptr;  // [B], each in [-1, F); -1: the whole catalogue
};

// A session with fewer than k allowed rows has its tail filled with row -1, score -inf, parts 0.
struct ScoreOutput {
  std::int64_t k = 0;                    // 1 <= k <= min(N, kMaxWinners)
  std::int64_t* rows = nullptr;          // [B, k]
  float* scores = nullptr;               // [B, k]
  float* user_part = nullptr;            // [B, k]
  float* query_part = nullptr;           // [B, k]
  std::int64_t* num_rescored = nullptr;  // [B] rows that an int8 scan scored exactly; 0 after an fp32 scan. The only
                                         // number that may depend on threads and instruction set
};

struct ScoreOptions {
  const Kernels* kernels = nullptr;
  std::int64_t num_threads = 1;
  bool int8 = false;  // scan the int8 panels first; the index must have them
};

// The first thing found wrong with the input, in session order.
struct ScoreFault {
  enum class Kind { kOmega, kUser, kLatent, kQuery };  // kQuery: W e + b is not finite
  Kind kind = Kind::kOmega;
  std::int64_t session = 0;
};

// On a fault the output is unspecified.
std::optional<ScoreFault> score(const ScorerIndex& index, const ScoreInput& input, const ScoreOutput& output,
                                const ScoreOptions& options);

}  // namespace rgalign
