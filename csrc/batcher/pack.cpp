#include "batcher/pack.h"

#include <algorithm>
#include <numeric>

namespace rgalign {

BatchShape pack(const Limits& limits, const Filling& filling, const TokenRow* rows, std::int64_t num_rows,
                const BatchBuffers& buffers) {
  BatchShape shape;
  shape.rows = num_rows;
  buffers.cu_seqlens[0] = 0;
  for (std::int64_t r = 0; r < num_rows; ++r) {
    shape.tokens += rows[r].num_tokens;
    shape.longest = std::max(shape.longest, rows[r].num_tokens);
    buffers.cu_seqlens[r + 1] = static_cast<std::int32_t>(shape.tokens);
  }
  std::fill(buffers.cu_seqlens + num_rows + 1, buffers.cu_seqlens + limits.max_rows + 1,
            static_cast<std::int32_t>(shape.tokens));
  shape.computed_tokens = computed_tokens(limits, num_rows, shape.tokens, shape.longest);

  const bool padded = limits.layout == Layout::kPadded;
  const std::int64_t width = padded ? bucket_of(limits.token_buckets, shape.longest) : 0;
  shape.width = width;
  const auto pad = [&](std::int64_t from, std::int64_t to) {
    std::fill(buffers.token_ids + from, buffers.token_ids + to, filling.pad_token);
    std::fill(buffers.positions + from, buffers.positions + to, filling.first_position);
  };
  std::int64_t end = 0;
  for (std::int64_t r = 0; r < num_rows; ++r) {
    const std::int64_t begin = padded ? r * width : buffers.cu_seqlens[r];
    pad(end, begin);
    end = begin + rows[r].num_tokens;
    std::copy_n(rows[r].token_ids, rows[r].num_tokens, buffers.token_ids + begin);
    std::iota(buffers.positions + begin, buffers.positions + end, filling.first_position);
  }
  pad(end, shape.computed_tokens);
  return shape;
}

}  // namespace rgalign
