// What a batch and the queue may hold, and what a batch of a given shape costs the model.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rgalign {

using Nanoseconds = std::int64_t;  // of a steady clock; a span or a point

enum class Layout : std::uint8_t {
  kPacked,  // rows one after the other: a batch computes the sum of their lengths
  kPadded,  // a [rows, longest] rectangle
};

struct Limits {
  // One batch.
  std::int64_t max_rows = 32;
  std::int64_t max_tokens = 8192;  // computed ones, padding included
  std::int64_t max_request_tokens = 512;
  Layout layout = Layout::kPacked;
  std::vector<std::int64_t> token_buckets;  // ascending; shapes the model has: of the sum (packed) or a row (padded)
  std::vector<std::int64_t> row_buckets;    // ascending; of the number of rows (padded)
  double max_waste = 0.25;                  // share of computed tokens that are padding, where the queue allows
  std::int64_t max_passes = 4;              // batches in which younger requests may overtake one of another length

  // The queue.
  std::int64_t max_queue = 0;            // 0: by Little's law from the capacity measured
  std::int64_t initial_queue = 64;       // until something is measured
  std::int64_t queue_limit = 1024;       // the most that Little's law may ask for: memory is sized by it
  Nanoseconds deadline = 1'500'000'000;  // that Little's law is to keep
  Nanoseconds slack = 100'000'000;
  std::int64_t max_per_client = 0;  // unfinished requests; 0: any number
  std::int64_t bulk_every = 8;      // batches without a bulk row while one waits; the next begins with it

  std::int64_t num_workers = 1;  // batches in the model at a time

  std::int64_t queue_slots() const { return max_queue > 0 ? max_queue : queue_limit; }
  std::int64_t num_slots() const { return queue_slots() + num_workers * max_rows; }
};

// The smallest bucket that holds `count`; 0 where none does. Without buckets every count is one.
inline std::int64_t bucket_of(const std::vector<std::int64_t>& buckets, std::int64_t count) {
  if (buckets.empty()) return count;
  const auto found = std::lower_bound(buckets.begin(), buckets.end(), count);
  return found == buckets.end() ? 0 : *found;
}

// Tokens that the model computes for such a batch; 0 where it has no shape that holds it.
inline std::int64_t computed_tokens(const Limits& limits, std::int64_t rows, std::int64_t tokens,
                                    std::int64_t longest) {
  if (limits.layout == Layout::kPacked) return bucket_of(limits.token_buckets, tokens);
  return bucket_of(limits.row_buckets, rows) * bucket_of(limits.token_buckets, longest);
}

inline bool fits(const Limits& limits, std::int64_t rows, std::int64_t tokens, std::int64_t longest) {
  const std::int64_t computed = computed_tokens(limits, rows, tokens, longest);
  return rows <= limits.max_rows && computed > 0 && computed <= limits.max_tokens;
}

}  // namespace rgalign
