#include "batcher/capacity.h"

#include <algorithm>

namespace rgalign {
namespace {

constexpr double kSecond = 1e9;
constexpr Nanoseconds kShortest = 1'000;  // below it a clock's steps would look like an endless capacity
constexpr double kRounding = 1e-6;        // (1.5 - 0.12 - 0.1) * 50 is 64, not 63.999...

}  // namespace

Capacity::Capacity(const Limits& limits)
    : limits_(limits),
      queue_cap_(limits.max_queue > 0 ? limits.max_queue : std::min(limits.initial_queue, limits.queue_limit)) {}

void Capacity::batch_done(std::int64_t rows, Nanoseconds in_model, bool loaded) {
  // One batch that hung says little about the next ones: it counts as one that took the whole deadline.
  const Nanoseconds counted = std::clamp(in_model, kShortest, std::max(kShortest, limits_.deadline));
  const double seconds = static_cast<double>(counted) / kSecond;
  const double rate = static_cast<double>(rows * limits_.num_workers) / seconds;
  if (rows_per_second_ == 0) {
    rows_per_second_ = rate;
    model_seconds_ = seconds;
  } else if (loaded) {
    rows_per_second_ += kWeight * (rate - rows_per_second_);
    model_seconds_ += kWeight * (seconds - model_seconds_);
  } else {
    rows_per_second_ = std::max(rows_per_second_, rate);
  }
  if (limits_.max_queue > 0) return;
  const double wait = static_cast<double>(limits_.deadline - limits_.slack) / kSecond - model_seconds_;
  const double cap = std::min(wait * rows_per_second_, static_cast<double>(limits_.queue_limit));
  queue_cap_ = std::max(std::min(limits_.max_rows, limits_.queue_limit), static_cast<std::int64_t>(cap + kRounding));
}

Nanoseconds Capacity::time_to_serve(std::int64_t queued) const {
  if (rows_per_second_ == 0) return limits_.deadline;
  return static_cast<Nanoseconds>(static_cast<double>(queued) / rows_per_second_ * kSecond);
}

}  // namespace rgalign
