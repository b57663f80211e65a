#include "batcher/batcher.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>
#include <variant>

namespace rgalign {
namespace {

using Clock = std::chrono::steady_clock;

Nanoseconds now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

Nanoseconds later(Nanoseconds present, Nanoseconds span) {
  return span > BatcherCore::kNever - present ? BatcherCore::kNever - 1 : present + span;
}

std::atomic<std::uint64_t> num_forks{0};

// How many forks lie between this process and the first that asked: cheaper than asking the kernel who we are.
std::uint64_t process_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { num_forks.fetch_add(1); });
  static_cast<void>(registered);
  return num_forks.load(std::memory_order_relaxed);
}

}  // namespace

Batcher::Shared::Shared(const Limits& limits)
    : woken(static_cast<std::size_t>(limits.num_workers)),
      is_woken(static_cast<std::size_t>(limits.num_workers)),
      core(limits),
      token_ids(static_cast<std::size_t>(limits.num_slots() * limits.max_request_tokens)),
      batches(static_cast<std::size_t>(limits.num_workers)) {}

Batcher::Batcher(const Limits& limits, const Filling& filling, AnswerSink& sink)
    : limits_(limits),
      filling_(filling),
      sink_(sink),
      process_(process_generation()),
      shared_(std::make_unique<Shared>(limits)) {
  shared_->thread = std::thread([this] { run_timer(); });
}

Batcher::~Batcher() {
  if (forked()) {
    shared_
        .release();  // destroying a condition variable waits for its waiters, and joining for a thread: neither is here
    return;
  }
  close(0);
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->stopping = true;
  }
  shared_->timer.notify_one();
  shared_->thread.join();
}

bool Batcher::forked() const { return num_forks.load(std::memory_order_relaxed) != process_; }

Submitted Batcher::submit(const Request& request) {
  if (forked()) return {};
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  return submit_locked(request);
}

bool Batcher::try_submit(const Request& request, Submitted& submitted) {
  submitted = {};
  if (forked()) return true;
  const std::unique_lock<std::mutex> lock(shared_->mutex, std::try_to_lock);
  if (lock) submitted = submit_locked(request);
  return lock.owns_lock();
}

Submitted Batcher::submit_locked(const Request& request) {
  Submitted submitted;
  submitted.status = Submitted::Status::kRefused;
  const Nanoseconds present = now();
  const Nanoseconds deadline = later(present, request.time_left);
  const Submit event{request.tag, request.num_tokens, deadline, request.client, request.priority};
  for (const Action& action : step(event, present)) {
    if (action.kind == Action::Kind::kAccept) {
      submitted.status = Submitted::Status::kAccepted;
      submitted.id = action.id;
      const auto slot = static_cast<std::size_t>(BatcherCore::slot_of_id(action.id));
      std::copy_n(request.token_ids, request.num_tokens,
                  shared_->token_ids.begin() + static_cast<std::ptrdiff_t>(slot * limits_.max_request_tokens));
    } else if (action.kind == Action::Kind::kAnswer && action.id == 0) {
      submitted.refusal = action.outcome;
      submitted.retry_after = action.retry_after;
    }
  }
  return submitted;
}

bool Batcher::cancel(RequestId id) {
  if (forked()) return false;
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  for (const Action& action : step(Cancel{id}, now())) {
    if (action.kind == Action::Kind::kAnswer && action.outcome == Outcome::kCancelled) return true;
  }
  return false;
}

bool Batcher::take(std::int32_t worker, const BatchBuffers& buffers, BatchShape& shape,
                   std::vector<std::uint64_t>& tags) {
  if (forked()) return false;
  const auto me = static_cast<std::size_t>(worker);
  std::vector<TokenRow>& rows = shared_->batches[me];
  {
    std::unique_lock<std::mutex> lock(shared_->mutex);
    bool dispatched = false;
    while (!dispatched) {
      shared_->is_woken[me] = 0;
      for (const Action& action : step(Ready{worker}, now())) {
        if (action.kind == Action::Kind::kStop) return false;
        dispatched |= action.kind == Action::Kind::kDispatch;
      }
      if (!dispatched) shared_->woken[me].wait(lock, [&] { return shared_->is_woken[me] != 0; });
    }
    rows.clear();
    tags.clear();
    for (const std::int32_t slot : shared_->core.batch(worker)) {
      rows.push_back({shared_->token_ids.data() + slot * limits_.max_request_tokens, shared_->core.num_tokens(slot)});
      tags.push_back(shared_->core.tag(slot));
    }
  }
  // The slots are this batch's until finish(), even if their requests are answered before.
  shape = pack(limits_, filling_, rows.data(), static_cast<std::int64_t>(rows.size()), buffers);
  return true;
}

BatchShape Batcher::repack(std::int32_t worker, std::int64_t first, std::int64_t last,
                           const BatchBuffers& buffers) const {
  const std::vector<TokenRow>& rows = shared_->batches[static_cast<std::size_t>(worker)];
  return pack(limits_, filling_, rows.data() + first, last - first, buffers);
}

bool Batcher::finish(std::int32_t worker, const Outcome* outcomes, std::uint8_t* won) {
  if (forked()) return false;
  std::vector<TokenRow>& rows = shared_->batches[static_cast<std::size_t>(worker)];
  std::fill_n(won, rows.size(), std::uint8_t{0});
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  for (const Action& action : step(Finish{worker, outcomes}, now())) {
    if (action.kind == Action::Kind::kAnswer && action.row >= 0) won[action.row] = 1;
  }
  return true;
}

void Batcher::close(Nanoseconds drain) {
  if (forked()) return;
  std::unique_lock<std::mutex> lock(shared_->mutex);
  step(Close{later(now(), drain)}, now());
  shared_->drained.wait(lock, [this] { return shared_->core.drained(); });
}

Counters Batcher::counters() const {
  if (forked()) return {};
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  return shared_->core.counters();
}

const std::vector<Action>& Batcher::step(const Event& event, Nanoseconds present) {
  Shared& shared = *shared_;
  const std::vector<Action>& actions = shared.core.step(event, present);
  for (const Action& action : actions) {
    if (action.kind == Action::Kind::kWake) {
      shared.is_woken[static_cast<std::size_t>(action.worker)] = 1;
      shared.woken[static_cast<std::size_t>(action.worker)].notify_one();
    } else if (action.kind == Action::Kind::kDrained) {
      shared.drained.notify_all();
    } else if (action.kind == Action::Kind::kAnswer) {
      // Who submits, cancels or finishes delivers the answer to that; the others are somebody else's.
      const bool is_callers = action.id == 0 || action.row >= 0 || action.outcome == Outcome::kCancelled;
      if (is_callers) continue;
      const Answer answer{action.tag, action.outcome};
      sink_.answered(&answer, 1);
    }
  }
  if (shared.core.next_deadline() < shared.armed) {
    shared.armed = shared.core.next_deadline();
    shared.timer.notify_one();
  }
  return actions;
}

void Batcher::run_timer() {
  Shared& shared = *shared_;
  std::unique_lock<std::mutex> lock(shared.mutex);
  while (!shared.stopping) {
    // Later deadlines that come meanwhile need no wake-up, nor do answers: the timer then looks once for nothing.
    step(Tick{}, now());
    shared.armed = shared.core.next_deadline();
    if (shared.armed == BatcherCore::kNever) {
      shared.timer.wait(lock);
    } else {
      const std::chrono::nanoseconds until(shared.armed);
      shared.timer.wait_until(lock, Clock::time_point(std::chrono::duration_cast<Clock::duration>(until)));
    }
  }
}

}  // namespace rgalign
