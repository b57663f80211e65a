// Token ids of a batch's rows into the caller's buffers (pinned memory, a CUDA graph's inputs).
#pragma once

#include <cstdint>
#include <vector>

#include "batcher/limits.h"

namespace rgalign {

struct TokenRow {
  const std::int32_t* token_ids;
  std::int64_t num_tokens;
};

// Of the caller; of these sizes at least. Nothing beyond what a batch computes is written.
struct BatchBuffers {
  std::int32_t* token_ids;   // [max_tokens]
  std::int32_t* positions;   // [max_tokens]
  std::int32_t* cu_seqlens;  // [max_rows + 1]
};

struct BatchShape {
  std::int64_t rows = 0;
  std::int64_t tokens = 0;           // of the requests
  std::int64_t computed_tokens = 0;  // with padding: so many of token_ids and positions are written
  std::int64_t longest = 0;
  std::int64_t width = 0;  // padded: of each row; packed: 0
};

struct Filling {
  std::int32_t pad_token = 0;
  std::int32_t first_position = 0;  // of every row: the length of a cached prefix
};

// Packed: row r at token_ids[cu_seqlens[r]]. Padded: at token_ids[r * bucket of longest]. In both cu_seqlens[0 .. rows]
// are the offsets of the true lengths, and from there to max_rows the last of them again, as for empty rows; the rest
// of the bucket is pad_token at first_position. The rows fit (see `fits`).
BatchShape pack(const Limits& limits, const Filling& filling, const TokenRow* rows, std::int64_t num_rows,
                const BatchBuffers& buffers);

}  // namespace rgalign
