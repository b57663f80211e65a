// The threaded shell of BatcherCore: a mutex, a steady clock, one timer thread, and workers that come for batches.
//
//   requests   submit() and cancel() from any thread; both are short and never wait for a model
//   workers    take() a batch, run it, finish() it; the thread is the caller's, so a model that never returns holds up
//              only itself (ModelWorkers in model.h are such threads for a C++ engine, rgalign/batcher.py's for Python)
//   the timer  answers each request at its deadline, whatever the model does
//
// After a fork the child has none of these threads: every call says so and touches nothing.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/large_array.h"
#include "batcher/core.h"
#include "batcher/pack.h"

namespace rgalign {

struct Answer {
  std::uint64_t tag;
  Outcome outcome;
  const float* row = nullptr;  // with kRow from a C++ engine; valid during the call
};

// Hears the answers that no caller waits for: deadlines, closing, an engine's rows. May be called under the batcher's
// mutex: it must be short and must not call the batcher.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  virtual void answered(const Answer* answers, std::size_t count) = 0;
};

struct Request {
  std::uint64_t tag = 0;
  const std::int32_t* token_ids = nullptr;  // [num_tokens], copied
  std::int64_t num_tokens = 0;
  Nanoseconds time_left = 0;  // to its deadline
  std::uint64_t client = kNobody;
  Priority priority = Priority::kInteractive;
};

struct Submitted {
  enum class Status : std::uint8_t { kAccepted, kRefused, kForked };
  Status status = Status::kForked;
  RequestId id = 0;                 // when accepted
  Outcome refusal = Outcome::kRow;  // when refused: its one answer; the sink does not hear of it
  Nanoseconds retry_after = 0;      // with kQueueFull
};

class Batcher {
 public:
  Batcher(const Limits& limits, const Filling& filling, AnswerSink& sink);
  ~Batcher();  // answers who is left with kClosed; no worker may be in take() any more
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  const Limits& limits() const { return limits_; }
  bool forked() const;

  Submitted submit(const Request& request);
  // As submit(), but gives up (false) where it would have to wait for the mutex. For callers that hold a lock of their
  // own.
  bool try_submit(const Request& request, Submitted& submitted);

  // True: the request had no answer yet, kCancelled is the one it gets, and the sink does not hear of it.
  bool cancel(RequestId id);

  // Waits for a batch, packs it and names its requests; false: closed, there will be no more. Each worker in
  // [0, num_workers) is one thread.
  bool take(std::int32_t worker, const BatchBuffers& buffers, BatchShape& shape, std::vector<std::uint64_t>& tags);

  // Packs rows [first, last) of the worker's present batch as if they were all of it.
  BatchShape repack(std::int32_t worker, std::int64_t first, std::int64_t last, const BatchBuffers& buffers) const;

  // One outcome a row. won[r] says whether it is that request's answer, which the caller delivers; if not, the request
  // was answered before. False after a fork.
  bool finish(std::int32_t worker, const Outcome* outcomes, std::uint8_t* won);

  // Refuses what comes from now on, lets workers serve what waits for at most `drain`, and returns when all are
  // answered.
  void close(Nanoseconds drain);

  Counters counters() const;

 private:
  // All that another thread may be waiting on: in a forked child it is left alone, for nobody could wake them.
  struct Shared {
    explicit Shared(const Limits& limits);
    mutable std::mutex mutex;
    std::condition_variable timer;               // an earlier deadline, or `stopping`
    std::condition_variable drained;             // everyone is answered
    std::vector<std::condition_variable> woken;  // of each worker
    std::vector<std::uint8_t> is_woken;
    BatcherCore core;
    Nanoseconds armed = BatcherCore::kNever;  // when the timer will look next
    bool stopping = false;
    LargeArray<std::int32_t> token_ids;          // [num_slots, max_request_tokens]
    std::vector<std::vector<TokenRow>> batches;  // of each worker
    std::thread thread;
  };

  // All of these hold the mutex.
  const std::vector<Action>& step(const Event& event,
                                  Nanoseconds present);  // wakes, and tells the sink what no caller delivers
  Submitted submit_locked(const Request& request);
  void run_timer();

  const Limits limits_;
  const Filling filling_;
  AnswerSink& sink_;
  const std::uint64_t process_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace rgalign
