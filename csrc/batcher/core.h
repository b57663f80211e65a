// The batcher as a pure state machine: step(event, now) -> actions. No thread, no clock, no model, and after
// construction no allocation. csrc/batcher/batcher.h is the shell that gives it all of these.
//
// What it promises, at every step and for any order of events (tests/csrc/batcher_core_test.cpp simulates it):
//   - each request that is submitted gets exactly one kAnswer: an answer is a compare-and-set on its slot, and what
//   comes
//     later for the same request is dropped and counted;
//   - no request is in a kDispatch at or after its deadline, nor after its cancellation;
//   - while a worker waits, no request does: one that is not on its way to a batch is woken for it;
//   - interactive goes before bulk, and each class in order of arrival, but for these bounds: younger requests overtake
//     one of another length in at most `max_passes` batches; a batch begins with bulk after `bulk_every` without any;
//   - a batch never exceeds max_rows or max_tokens, the queue never its cap;
//   - submitted == sum of answers by outcome + waiting + in the model.
#pragma once

#include <array>
#include <cstdint>
#include <variant>
#include <vector>

#include "batcher/capacity.h"
#include "batcher/clients.h"
#include "batcher/deadlines.h"
#include "batcher/form.h"
#include "batcher/limits.h"

namespace rgalign {

enum class Priority : std::uint8_t { kInteractive, kBulk };

// How a request ends. rgalign/batcher.py has the same order.
enum class Outcome : std::uint8_t {
  kRow,              // the model's row
  kDeadlineQueued,   // its deadline came before a model took it
  kDeadlineRunning,  // its deadline came while the model had it
  kCancelled,
  kQueueFull,
  kClientCap,
  kClosed,
  kWrongLength,  // no batch can hold it
  kModelRaised,
  kModelShape,      // not one row for each request
  kModelNotFinite,  // NaN or infinity in its row
};
constexpr std::size_t kNumOutcomes = 11;

using RequestId = std::uint64_t;      // slot in the low half, the slot's generation in the high one
constexpr std::uint64_t kNobody = 0;  // a client to which no cap applies

struct Submit {
  std::uint64_t tag;  // the caller's name for it, given back with the answer
  std::int64_t num_tokens;
  Nanoseconds deadline;
  std::uint64_t client;
  Priority priority;
};
struct Cancel {
  RequestId id;
};
// A worker has nothing to do. Each worker sends it before its first batch, after each kWake and after each Finish.
struct Ready {
  std::int32_t worker;
};
// The worker's batch has left the model; one outcome for each of its rows.
struct Finish {
  std::int32_t worker;
  const Outcome* outcomes;
};
struct Tick {};
// No more requests; what waits goes on being served until the time given, then is answered kClosed.
struct Close {
  Nanoseconds until;
};
using Event = std::variant<Submit, Cancel, Ready, Finish, Tick, Close>;

struct Action {
  enum class Kind : std::uint8_t {
    kAccept,    // id: the Submit of this step waits
    kAnswer,    // id (0: refused), tag, outcome; row: its place in the Finish of this step, or -1
    kWake,      // worker: something waits for it, or the batcher closes
    kDispatch,  // worker: batch(worker) is what it shall run
    kStop,      // worker: there will be no more
    kDrained,   // closed, and everyone is answered
  };
  Kind kind;
  Outcome outcome = Outcome::kRow;
  std::int32_t worker = -1;
  std::int32_t row = -1;
  RequestId id = 0;
  std::uint64_t tag = 0;
  Nanoseconds retry_after = 0;  // of kQueueFull
};

struct Counters {
  std::int64_t submitted = 0;
  std::array<std::int64_t, kNumOutcomes> answered{};  // by outcome
  std::int64_t waiting = 0, in_model = 0;             // unanswered, now
  std::int64_t most_waiting = 0;
  std::int64_t batches = 0, rows = 0, tokens = 0, computed_tokens = 0;  // dispatched
  std::int64_t late_rows = 0;  // left the model after their request was answered otherwise
  std::int64_t queue_cap = 0;  // now
  double rows_per_second = 0;  // measured capacity; 0: nothing measured yet
};

class BatcherCore {
 public:
  static constexpr Nanoseconds kNever = Deadlines::kNever;

  explicit BatcherCore(const Limits& limits);

  // The actions stay valid until the next step. Time does not go back: an earlier `now` counts as the latest one.
  const std::vector<Action>& step(const Event& event, Nanoseconds now);

  // When a Tick is due; kNever while nothing has a deadline.
  Nanoseconds next_deadline() const;

  // Slots of the batch that a worker has, in row order; they stay the batch's until its Finish.
  const std::vector<std::int32_t>& batch(std::int32_t worker) const { return worker_of(worker).batch; }
  std::int64_t num_tokens(std::int32_t slot) const { return slot_of(slot).num_tokens; }
  std::uint64_t tag(std::int32_t slot) const { return slot_of(slot).tag; }
  static std::int32_t slot_of_id(RequestId id) { return static_cast<std::int32_t>(id & 0xFFFFFFFFU); }

  bool drained() const { return drained_; }
  Counters counters() const;

 private:
  enum class State : std::uint8_t { kFree, kWaiting, kRunning, kAnswered /* and still in a batch */ };
  struct Slot {
    State state = State::kFree;
    Priority priority = Priority::kInteractive;
    std::uint32_t generation = 1;
    std::int32_t previous = -1, next = -1;  // in its class's queue
    std::int64_t num_tokens = 0;
    std::int64_t passes = 0;  // batches in which a younger one overtook it
    Nanoseconds deadline = 0;
    std::uint64_t tag = 0;
    std::uint64_t client = kNobody;
  };
  struct Queue {  // in order of arrival
    std::int32_t head = -1, tail = -1;
    std::int64_t size = 0;
  };
  struct Worker {
    enum class State : std::uint8_t { kAway, kWaiting, kWoken, kRunning };
    State state = State::kAway;
    std::vector<std::int32_t> batch;
    Nanoseconds dispatched = 0;
    bool loaded = false;
  };

  void on(const Submit& event);
  void on(const Cancel& event);
  void on(const Ready& event);
  void on(const Finish& event);
  void on(const Tick&) {}
  void on(const Close& event);

  void expire();
  void answer_all_closed();
  bool answer(std::int32_t slot, Outcome outcome, std::int32_t row = -1);  // false: it had been answered
  void refuse(const Submit& event, Outcome outcome, Nanoseconds retry_after = 0);
  void line_up();                        // the candidates of the next batch, in order of service
  void line_up_from(std::int32_t slot);  // a queue, from there
  void dispatch(std::int32_t worker);
  void wake_workers();
  void wake(Worker& worker);
  void append(std::int32_t slot);
  void unlink(std::int32_t slot);
  void release(std::int32_t slot);

  std::int64_t waiting() const { return queues_[0].size + queues_[1].size; }
  Queue& queue_of(Priority priority) { return queues_[static_cast<std::size_t>(priority)]; }
  Slot& slot_of(std::int32_t slot) { return slots_[static_cast<std::size_t>(slot)]; }
  const Slot& slot_of(std::int32_t slot) const { return slots_[static_cast<std::size_t>(slot)]; }
  Worker& worker_of(std::int32_t worker) { return workers_[static_cast<std::size_t>(worker)]; }
  const Worker& worker_of(std::int32_t worker) const { return workers_[static_cast<std::size_t>(worker)]; }

  const Limits limits_;
  Nanoseconds now_ = 0;
  std::vector<Action> actions_;
  std::vector<Slot> slots_;
  std::vector<std::int32_t> free_slots_;
  std::array<Queue, 2> queues_;
  std::vector<Worker> workers_;
  Deadlines deadlines_;  // of unanswered requests
  Clients clients_;
  Capacity capacity_;
  Counters counters_;
  std::int64_t num_woken_ = 0;
  std::int64_t batches_without_bulk_ = 0;  // since one last waited in vain
  bool closing_ = false, drained_ = false;
  Nanoseconds drain_until_ = kNever;
  std::vector<std::int32_t> line_;  // slots of candidates_
  std::vector<Candidate> candidates_;
  std::vector<std::int64_t> picked_;
};

}  // namespace rgalign
