// What the model can do, from the batches it did, and the longest queue that is worth having.
//
//     cap = floor((deadline - model_time - slack) * rows_per_second)          Little's law
//
// A longer queue only holds requests that will miss their deadline. The paper's 1.5 s, 120 ms and 50 a second, with
// 0.1 s of slack, give 64.
#pragma once

#include <cstdint>

#include "batcher/limits.h"

namespace rgalign {

class Capacity {
 public:
  explicit Capacity(const Limits& limits);

  // A batch has left the model. `loaded`: it was as full as the queue and the budgets allow; one that was not says only
  // that the model can do at least as much.
  void batch_done(std::int64_t rows, Nanoseconds in_model, bool loaded);

  std::int64_t queue_cap() const { return queue_cap_; }
  double rows_per_second() const { return rows_per_second_; }  // 0: nothing measured yet

  // Until a queue of this length has been served: when a refused client may come again.
  Nanoseconds time_to_serve(std::int64_t queued) const;

 private:
  static constexpr double kWeight = 0.2;  // of the newest batch

  const Limits limits_;
  double rows_per_second_ = 0;
  double model_seconds_ = 0;
  std::int64_t queue_cap_;
};

}  // namespace rgalign
