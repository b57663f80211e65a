#include "batcher/core.h"

#include <algorithm>

namespace rgalign {
namespace {

// Of each class, so many rows of a batch are looked at: it bounds the work of forming one.
constexpr std::int64_t kLookAhead = 4;

// Bulk fills at most this part of the queue, so that it never has interactive requests refused alone.
constexpr std::int64_t kBulkPart = 2;

}  // namespace

BatcherCore::BatcherCore(const Limits& limits)
    : limits_(limits),
      slots_(static_cast<std::size_t>(limits.num_slots())),
      workers_(static_cast<std::size_t>(limits.num_workers)),
      deadlines_(limits.num_slots()),
      clients_(limits.num_slots()),
      capacity_(limits) {
  for (auto slot = static_cast<std::int32_t>(slots_.size()); slot > 0; --slot) free_slots_.push_back(slot - 1);
  actions_.reserve(slots_.size() + workers_.size() + 4);
  for (Worker& worker : workers_) worker.batch.reserve(static_cast<std::size_t>(limits.max_rows));
  const auto looked_at = static_cast<std::size_t>(2 * (kLookAhead * limits.max_rows + 1));
  line_.reserve(looked_at);
  candidates_.reserve(looked_at);
  picked_.reserve(static_cast<std::size_t>(limits.max_rows));
}

const std::vector<Action>& BatcherCore::step(const Event& event, Nanoseconds now) {
  actions_.clear();
  now_ = std::max(now_, now);
  expire();
  std::visit([this](const auto& each) { on(each); }, event);
  wake_workers();
  if (closing_ && !drained_ && waiting() + counters_.in_model == 0) {
    drained_ = true;
    actions_.push_back({Action::Kind::kDrained});
  }
  return actions_;
}

Nanoseconds BatcherCore::next_deadline() const {
  const Nanoseconds drain = waiting() + counters_.in_model > 0 ? drain_until_ : kNever;
  return std::min(deadlines_.earliest(), drain);
}

Counters BatcherCore::counters() const {
  Counters now = counters_;
  now.waiting = waiting();
  now.queue_cap = capacity_.queue_cap();
  now.rows_per_second = capacity_.rows_per_second();
  return now;
}

void BatcherCore::on(const Submit& event) {
  ++counters_.submitted;
  if (closing_) return refuse(event, Outcome::kClosed);
  if (event.num_tokens < 1 || event.num_tokens > limits_.max_request_tokens ||
      !fits(limits_, 1, event.num_tokens, event.num_tokens)) {
    return refuse(event, Outcome::kWrongLength);
  }
  if (event.deadline <= now_) return refuse(event, Outcome::kDeadlineQueued);
  const bool capped = limits_.max_per_client > 0 && event.client != kNobody;
  if (capped && clients_.count(event.client) >= limits_.max_per_client) return refuse(event, Outcome::kClientCap);
  const std::int64_t cap = capacity_.queue_cap();
  const std::int64_t bulk_cap = std::max<std::int64_t>(1, cap / kBulkPart);
  if (waiting() >= cap || (event.priority == Priority::kBulk && queue_of(Priority::kBulk).size >= bulk_cap)) {
    return refuse(event, Outcome::kQueueFull, capacity_.time_to_serve(waiting()));
  }

  const std::int32_t index = free_slots_.back();
  free_slots_.pop_back();
  Slot& slot = slot_of(index);
  slot.state = State::kWaiting;
  slot.priority = event.priority;
  slot.num_tokens = event.num_tokens;
  slot.passes = 0;
  slot.deadline = event.deadline;
  slot.tag = event.tag;
  slot.client = capped ? event.client : kNobody;
  if (capped) clients_.add(event.client);
  deadlines_.add(index, event.deadline);
  append(index);
  counters_.most_waiting = std::max(counters_.most_waiting, waiting());
  Action accept{Action::Kind::kAccept};
  accept.id = static_cast<RequestId>(slot.generation) << 32 | static_cast<std::uint32_t>(index);
  accept.tag = slot.tag;
  actions_.push_back(accept);
}

void BatcherCore::on(const Cancel& event) {
  const std::int32_t index = slot_of_id(event.id);
  if (index < 0 || static_cast<std::size_t>(index) >= slots_.size()) return;
  if (slot_of(index).generation == event.id >> 32) answer(index, Outcome::kCancelled);
}

void BatcherCore::on(const Ready& event) {
  Worker& worker = worker_of(event.worker);
  if (worker.state == Worker::State::kRunning) return;  // its Finish is still to come
  if (worker.state == Worker::State::kWoken) --num_woken_;
  worker.state = Worker::State::kWaiting;
  if (waiting() > 0) return dispatch(event.worker);
  if (!closing_) return;
  worker.state = Worker::State::kAway;
  Action stop{Action::Kind::kStop};
  stop.worker = event.worker;
  actions_.push_back(stop);
}

void BatcherCore::on(const Finish& event) {
  Worker& worker = worker_of(event.worker);
  if (worker.state != Worker::State::kRunning) return;
  const auto rows = static_cast<std::int32_t>(worker.batch.size());
  for (std::int32_t row = 0; row < rows; ++row) {
    const std::int32_t slot = worker.batch[static_cast<std::size_t>(row)];
    if (!answer(slot, event.outcomes[row], row)) ++counters_.late_rows;
    release(slot);
  }
  capacity_.batch_done(rows, now_ - worker.dispatched, worker.loaded);
  worker.batch.clear();
  worker.state = Worker::State::kAway;
}

void BatcherCore::on(const Close& event) {
  closing_ = true;
  drain_until_ = std::min(drain_until_, event.until);
  if (drain_until_ <= now_) answer_all_closed();
}

void BatcherCore::expire() {
  while (deadlines_.earliest() <= now_) {
    const std::int32_t slot = deadlines_.earliest_slot();
    answer(slot, slot_of(slot).state == State::kWaiting ? Outcome::kDeadlineQueued : Outcome::kDeadlineRunning);
  }
  if (drain_until_ <= now_) answer_all_closed();
}

void BatcherCore::answer_all_closed() {
  for (Queue& queue : queues_) {
    while (queue.head >= 0) answer(queue.head, Outcome::kClosed);
  }
  for (const Worker& worker : workers_) {
    for (const std::int32_t slot : worker.batch) answer(slot, Outcome::kClosed);
  }
}

bool BatcherCore::answer(std::int32_t index, Outcome outcome, std::int32_t row) {
  Slot& slot = slot_of(index);
  if (slot.state != State::kWaiting && slot.state != State::kRunning) return false;
  Action answer{Action::Kind::kAnswer};
  answer.outcome = outcome;
  answer.row = row;
  answer.id = static_cast<RequestId>(slot.generation) << 32 | static_cast<std::uint32_t>(index);
  answer.tag = slot.tag;
  actions_.push_back(answer);
  ++counters_.answered[static_cast<std::size_t>(outcome)];
  deadlines_.remove(index);
  if (slot.client != kNobody) clients_.remove(slot.client);
  if (slot.state == State::kWaiting) {
    unlink(index);
    release(index);
  } else {
    slot.state = State::kAnswered;
    --counters_.in_model;
  }
  return true;
}

void BatcherCore::refuse(const Submit& event, Outcome outcome, Nanoseconds retry_after) {
  ++counters_.answered[static_cast<std::size_t>(outcome)];
  Action answer{Action::Kind::kAnswer};
  answer.outcome = outcome;
  answer.tag = event.tag;
  answer.retry_after = retry_after;
  actions_.push_back(answer);
}

void BatcherCore::line_up() {
  line_.clear();
  candidates_.clear();
  const Queue& bulk = queue_of(Priority::kBulk);
  const bool bulk_is_due = bulk.size > 0 && batches_without_bulk_ >= limits_.bulk_every;
  if (!bulk_is_due) {
    line_up_from(queue_of(Priority::kInteractive).head);
    return line_up_from(bulk.head);
  }
  line_.push_back(bulk.head);
  candidates_.push_back({slot_of(bulk.head).num_tokens, true});
  line_up_from(queue_of(Priority::kInteractive).head);
  line_up_from(slot_of(bulk.head).next);
}

void BatcherCore::line_up_from(std::int32_t from) {
  std::int64_t looked_at = 0;
  for (std::int32_t index = from; index >= 0 && looked_at < kLookAhead * limits_.max_rows;
       index = slot_of(index).next) {
    line_.push_back(index);
    candidates_.push_back({slot_of(index).num_tokens, slot_of(index).passes < limits_.max_passes});
    ++looked_at;
  }
}

void BatcherCore::dispatch(std::int32_t index) {
  line_up();
  form_batch(limits_, candidates_, picked_);
  Worker& worker = worker_of(index);
  const bool bulk_waits = queue_of(Priority::kBulk).size > 0;
  bool has_bulk = false;
  std::int64_t tokens = 0, longest = 0, place = 0;
  for (const std::int64_t picked : picked_) {
    for (; place < picked; ++place) ++slot_of(line_[static_cast<std::size_t>(place)]).passes;
    ++place;
    const std::int32_t taken = line_[static_cast<std::size_t>(picked)];
    unlink(taken);
    Slot& slot = slot_of(taken);
    slot.state = State::kRunning;
    has_bulk |= slot.priority == Priority::kBulk;
    tokens += slot.num_tokens;
    longest = std::max(longest, slot.num_tokens);
    worker.batch.push_back(taken);
  }
  const auto rows = static_cast<std::int64_t>(worker.batch.size());
  batches_without_bulk_ = bulk_waits && !has_bulk ? batches_without_bulk_ + 1 : 0;
  worker.state = Worker::State::kRunning;
  worker.dispatched = now_;
  worker.loaded = rows == limits_.max_rows || waiting() > 0;
  counters_.in_model += rows;
  ++counters_.batches;
  counters_.rows += rows;
  counters_.tokens += tokens;
  counters_.computed_tokens += computed_tokens(limits_, rows, tokens, longest);
  Action dispatch{Action::Kind::kDispatch};
  dispatch.worker = index;
  actions_.push_back(dispatch);
}

void BatcherCore::wake_workers() {
  for (Worker& worker : workers_) {
    if (worker.state != Worker::State::kWaiting) continue;
    if (closing_ || waiting() > num_woken_ * limits_.max_rows) wake(worker);
  }
}

void BatcherCore::wake(Worker& worker) {
  worker.state = Worker::State::kWoken;
  ++num_woken_;
  Action wake{Action::Kind::kWake};
  wake.worker = static_cast<std::int32_t>(&worker - workers_.data());
  actions_.push_back(wake);
}

void BatcherCore::append(std::int32_t index) {
  Slot& slot = slot_of(index);
  Queue& queue = queue_of(slot.priority);
  slot.previous = queue.tail;
  slot.next = -1;
  (queue.tail >= 0 ? slot_of(queue.tail).next : queue.head) = index;
  queue.tail = index;
  ++queue.size;
}

void BatcherCore::unlink(std::int32_t index) {
  const Slot& slot = slot_of(index);
  Queue& queue = queue_of(slot.priority);
  (slot.previous >= 0 ? slot_of(slot.previous).next : queue.head) = slot.next;
  (slot.next >= 0 ? slot_of(slot.next).previous : queue.tail) = slot.previous;
  --queue.size;
}

void BatcherCore::release(std::int32_t index) {
  Slot& slot = slot_of(index);
  slot.state = State::kFree;
  ++slot.generation;
  free_slots_.push_back(index);
}

}  // namespace rgalign
