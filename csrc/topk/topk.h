// Exact top-k over dense scores, with the tie rule that holds everywhere in rgalign:
// score descending, then row index ascending (catalogue rows are in id order). -0.0 ties with +0.0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace rgalign {

// What is ranked. Pointers are borrowed for the length of the call.
struct TopkInput {
  const float* scores = nullptr;             // [num_sessions, num_intents], row-major
  std::int64_t num_sessions = 0;             // B
  std::int64_t num_intents = 0;              // N
  const std::int64_t* candidates = nullptr;  // [B, num_candidates] rows of the catalogue, -1 = padding;
                                             // nullptr: the whole catalogue is ranked
  std::int64_t num_candidates = 0;           // C
};

// Where the winners go. A session with fewer than k candidates has its tail filled with row -1, score -inf.
struct TopkOutput {
  std::int64_t* rows = nullptr;  // [B, k]
  float* scores = nullptr;       // [B, k]
  std::int64_t k = 0;            // 1 <= k <= N, or <= C when there are candidates
};

// The first thing found wrong with the input, in session order: the same one for any number of threads.
struct TopkFault {
  enum class Kind { kNanScore, kCandidateOutOfRange };
  Kind kind = Kind::kNanScore;
  std::int64_t session = 0;
  std::int64_t column = 0;  // column of `scores` for kNanScore, of `candidates` for kCandidateOutOfRange
};

// Ranks every session on `num_threads` (>= 1) threads, the calling one among them; sessions are split in contiguous
// runs, so the answer does not depend on the number. Candidates are a set: one named twice is ranked once. Scores that
// are not ranked are not looked at. On a fault the output is unspecified.
std::optional<TopkFault> topk(const TopkInput& input, const TopkOutput& output, std::size_t num_threads);

}  // namespace rgalign
