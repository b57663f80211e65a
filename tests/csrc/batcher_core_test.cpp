// The batcher's state machine under virtual time: thousands of random schedules, each step compared with a ledger that
// knows nothing of slots, heaps or queues. A failure prints its seed; `batcher_core_test SEED` replays it alone, and
// RGALIGN_BATCHER_SEEDS=100000 runs so many.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "batcher/core.h"

namespace {

using namespace rgalign;  // NOLINT

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr unsigned kSeeds = 300;
#else
constexpr unsigned kSeeds = 3000;
#endif
constexpr int kEvents = 400;
constexpr Nanoseconds kMs = 1'000'000;

unsigned seed_under_test = 0;

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s (seed %u)\n", what.c_str(), seed_under_test);
  std::exit(1);
}

// What happened over all seeds: a schedule that never came to some state has shown nothing about it.
struct Seen {
  std::array<std::int64_t, kNumOutcomes> outcomes{};
  std::int64_t dispatches = 0, full_batches = 0, overtakings = 0, barriers = 0, bulk_heads = 0, late_rows = 0;
  std::int64_t wasteful = 0, drained = 0, stops = 0, stale_cancels = 0, second_wakes = 0, measured_caps = 0;
};

struct Entry {  // of the ledger
  Submit submit;
  RequestId id = 0;
  enum class State { kWaiting, kRunning, kAnswered } state = State::kWaiting;
  std::int64_t passes = 0;
};

class Simulation {
 public:
  Simulation(unsigned seed, Seen& seen) : random_(seed), seen_(seen), limits_(limits()), core_(limits_) {
    idle_.assign(static_cast<std::size_t>(limits_.num_workers), Worker::kAway);
    batches_.resize(idle_.size());
    outcomes_.assign(static_cast<std::size_t>(limits_.max_rows), Outcome::kRow);
  }

  void run() {
    for (int event = 0; event < kEvents; ++event) random_event();
    step(Close{now_ + below(40) * kMs});
    require(core_.next_deadline() != BatcherCore::kNever || unfinished() == 0, "a closing batcher has an end in sight");
    for (int event = 0; event < 2000 && !core_.drained(); ++event) random_event();
    if (!core_.drained()) step(Close{now_});
    require(core_.drained() && unfinished() == 0, "close answers everyone");
    ++seen_.drained;
    for (std::size_t w = 0; w < idle_.size(); ++w) {
      if (idle_[w] == Worker::kRunning) finish(w);
      if (idle_[w] != Worker::kStopped) ready(w);
      require(idle_[w] == Worker::kStopped, "a worker of a closed batcher is told to stop");
    }
    for (std::size_t i = 0; i < kNumOutcomes; ++i) seen_.outcomes[i] += core_.counters().answered[i];
  }

 private:
  enum class Worker { kAway, kWaiting, kWoken, kRunning, kStopped };

  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(bound));
  }

  Limits limits() {
    Limits limits;
    limits.max_rows = 1 + below(8);
    limits.max_request_tokens = 20 + below(80);
    limits.layout = below(2) == 0 ? Layout::kPacked : Layout::kPadded;
    if (below(3) > 0) limits.token_buckets = {16, 32, 64, 128, 256, 512};
    if (limits.layout == Layout::kPadded && below(2) == 0) limits.row_buckets = {4, 8};
    limits.max_tokens = 512 + below(512);
    limits.max_waste = static_cast<double>(below(5)) / 10.0;
    limits.max_passes = below(4);
    limits.max_queue = below(3) == 0 ? 0 : 1 + below(24);
    limits.initial_queue = 4;
    limits.queue_limit = 16;
    limits.deadline = 60 * kMs;
    limits.slack = 5 * kMs;
    limits.max_per_client = below(3) == 0 ? 0 : 1 + below(6);
    limits.bulk_every = 1 + below(4);
    limits.num_workers = 1 + below(3);
    return limits;
  }

  void random_event() {
    now_ += below(4) == 0 ? below(8 * kMs) : below(kMs / 4);
    if (below(30) == 0 && core_.next_deadline() < now_ + 50 * kMs) now_ = std::max(now_, core_.next_deadline());
    const std::int64_t kind = below(100);
    const auto w = static_cast<std::size_t>(below(static_cast<std::int64_t>(idle_.size())));
    if (kind < 50) {
      submit();
    } else if (kind < 58 && !ledger_.empty()) {
      cancel();
    } else if (kind < 66) {
      step(Tick{});
    } else if (idle_[w] == Worker::kRunning) {
      if (below(3) > 0) finish(w);
    } else if (idle_[w] == Worker::kWoken || (idle_[w] == Worker::kAway && below(2) == 0) || below(8) == 0) {
      if (idle_[w] != Worker::kStopped) ready(w);
    }
  }

  void submit() {
    Submit submit;
    submit.tag = next_tag_++;
    const std::int64_t size = below(10);
    submit.num_tokens = size == 0 ? below(3) * (limits_.max_request_tokens + 1) : 1 + below(limits_.max_request_tokens);
    submit.deadline = now_ + below(12) * below(12) * kMs;
    submit.client = static_cast<std::uint64_t>(below(4));
    submit.priority = below(3) == 0 ? Priority::kBulk : Priority::kInteractive;
    Entry& entry = ledger_[submit.tag];
    entry.submit = submit;
    step(submit);
    require(entry.id != 0 || entry.state == Entry::State::kAnswered, "a submission is accepted or refused");
  }

  void cancel() {
    auto it =
        ledger_.lower_bound(next_tag_ - std::min<std::uint64_t>(next_tag_, static_cast<std::uint64_t>(1 + below(40))));
    const Entry::State before = it->second.state;
    cancelled_ = it->first;
    step(Cancel{it->second.id});
    cancelled_ = kNoTag;
    seen_.stale_cancels += before == Entry::State::kAnswered;
    require(it->second.state == Entry::State::kAnswered, "who cancels has an answer");
  }

  void ready(std::size_t w) {
    const bool something_waited = num(Entry::State::kWaiting) > 0;
    // Who expires at this very step may leave nothing; otherwise an idle worker takes what there is.
    const auto due = std::count_if(ledger_.begin(), ledger_.end(), [&](const auto& each) {
      return each.second.state == Entry::State::kWaiting && each.second.submit.deadline > now_;
    });
    if (idle_[w] != Worker::kWoken) idle_[w] = Worker::kWaiting;
    readied_ = w;
    step(Ready{static_cast<std::int32_t>(w)});
    readied_ = kNoWorker;
    if (something_waited && due > 0 && now_ < drain_until_)
      require(idle_[w] == Worker::kRunning, "an idle worker takes");
    if (idle_[w] == Worker::kWoken) idle_[w] = Worker::kWaiting;
  }

  void finish(std::size_t w) {
    finishing_ = w;
    for (Outcome& outcome : outcomes_) {
      const std::int64_t kind = below(20);
      outcome = kind == 0   ? Outcome::kModelNotFinite
                : kind == 1 ? Outcome::kModelShape
                : kind == 2 ? Outcome::kModelRaised
                            : Outcome::kRow;
    }
    const std::int64_t late_before = core_.counters().late_rows;
    std::int64_t late = 0;
    for (const std::uint64_t tag : batches_[w]) {
      const Entry& entry = ledger_[tag];
      late += entry.state == Entry::State::kAnswered || entry.submit.deadline <= now_ || drain_until_ <= now_;
    }
    step(Finish{static_cast<std::int32_t>(w), outcomes_.data()});
    require(core_.counters().late_rows - late_before == late, "late rows are dropped and counted");
    seen_.late_rows += late;
    finishing_ = kNoWorker;
    batches_[w].clear();
    idle_[w] = Worker::kAway;
  }

  void step(const Event& event) {
    if (const auto* close = std::get_if<Close>(&event)) {
      closing_ = true;
      drain_until_ = std::min(drain_until_, close->until);
    }
    const std::int64_t cap = core_.counters().queue_cap;
    for (const Action& action : core_.step(event, now_)) check(action, event, cap);
    check_invariants();
  }

  void check(const Action& action, const Event& event, std::int64_t cap) {
    switch (action.kind) {
      case Action::Kind::kAccept: {
        Entry& entry = ledger_[action.tag];
        const Submit& submit = entry.submit;
        require(entry.id == 0 && !closing_, "one acceptance, and none after closing");
        require(submit.deadline > now_, "accepted before its deadline");
        entry.id = action.id;
        require(num(Entry::State::kWaiting) <= cap, "the queue keeps its cap");
        if (limits_.max_per_client > 0 && submit.client != kNobody) {
          require(of_client(submit.client) <= limits_.max_per_client, "clients keep their cap");
        }
        break;
      }
      case Action::Kind::kAnswer:
        check_answer(action, event, cap);
        break;
      case Action::Kind::kDispatch:
        check_dispatch(static_cast<std::size_t>(action.worker));
        break;
      case Action::Kind::kWake: {
        Worker& worker = idle_[static_cast<std::size_t>(action.worker)];
        require(worker == Worker::kWaiting, "only a waiting worker is woken");
        seen_.second_wakes += std::count(idle_.begin(), idle_.end(), Worker::kWoken) > 0;
        worker = Worker::kWoken;
        break;
      }
      case Action::Kind::kStop:
        require(closing_ && num(Entry::State::kWaiting) == 0, "workers stop when there will be no more");
        idle_[static_cast<std::size_t>(action.worker)] = Worker::kStopped;
        ++seen_.stops;
        break;
      case Action::Kind::kDrained:
        require(closing_ && unfinished() == 0, "drained means everyone is answered");
        break;
    }
  }

  void check_answer(const Action& action, const Event& event, std::int64_t cap) {
    Entry& entry = ledger_.at(action.tag);
    require(entry.state != Entry::State::kAnswered, "one answer for each request");
    require(action.id == entry.id, "an answer names its request");
    const bool refused = action.id == 0;
    const Submit& submit = entry.submit;
    switch (action.outcome) {
      case Outcome::kDeadlineQueued:
        require(submit.deadline <= now_ && entry.state == Entry::State::kWaiting, "a deadline that came in the queue");
        break;
      case Outcome::kDeadlineRunning:
        require(submit.deadline <= now_ && entry.state == Entry::State::kRunning, "a deadline that came in the model");
        break;
      case Outcome::kCancelled:
        require(cancelled_ == action.tag, "only who cancels is cancelled");
        break;
      case Outcome::kQueueFull: {
        // The refused one is itself in the ledger as waiting.
        const std::int64_t others = num(Entry::State::kWaiting) - 1;
        const bool bulk = submit.priority == Priority::kBulk;
        require(
            refused && (others >= cap || (bulk && of_class(Priority::kBulk) - 1 >= std::max<std::int64_t>(1, cap / 2))),
            "refused because the queue is full");
        require(action.retry_after > 0, "and told when to come again");
        break;
      }
      case Outcome::kClientCap:
        require(refused && of_client(submit.client) - 1 >= limits_.max_per_client,
                "refused because its client has too many");
        break;
      case Outcome::kClosed:
        require(closing_ && (refused || drain_until_ <= now_), "closed only after closing");
        break;
      case Outcome::kWrongLength:
        require(refused && (submit.num_tokens < 1 || submit.num_tokens > limits_.max_request_tokens ||
                            !fits(limits_, 1, submit.num_tokens, submit.num_tokens)),
                "refused because no batch could hold it");
        break;
      default:
        require(std::holds_alternative<Finish>(event) && action.row >= 0, "rows come from a batch");
        require(batches_[finishing_].at(static_cast<std::size_t>(action.row)) == action.tag,
                "in the order they went in");
        require(outcomes_[static_cast<std::size_t>(action.row)] == action.outcome, "with the outcome of their row");
        require(entry.state == Entry::State::kRunning && submit.deadline > now_, "in time");
    }
    entry.state = Entry::State::kAnswered;
  }

  void check_dispatch(std::size_t w) {
    require(w == readied_, "a batch goes to the worker that came for it");
    std::vector<std::uint64_t> batch;
    std::int64_t tokens = 0, longest = 0;
    for (const std::int32_t slot : core_.batch(static_cast<std::int32_t>(w))) {
      const std::uint64_t tag = core_.tag(slot);
      batch.push_back(tag);
      Entry& entry = ledger_.at(tag);
      require(entry.state == Entry::State::kWaiting, "who is dispatched was waiting: not answered, not cancelled");
      require(entry.submit.deadline > now_, "never dispatched at or after its deadline");
      require(core_.num_tokens(slot) == entry.submit.num_tokens, "with its own length");
      tokens += entry.submit.num_tokens;
      longest = std::max(longest, entry.submit.num_tokens);
      entry.state = Entry::State::kRunning;
    }
    const auto rows = static_cast<std::int64_t>(batch.size());
    const std::int64_t computed = computed_tokens(limits_, rows, tokens, longest);
    require(rows >= 1 && rows <= limits_.max_rows, "rows within the budget");
    require(computed >= tokens && computed <= limits_.max_tokens, "computed tokens within the budget");
    check_order(batch);
    check_waste(batch, static_cast<double>(computed - tokens) / static_cast<double>(computed));
    check_bulk(batch);
    seen_.full_batches += rows == limits_.max_rows;
    ++seen_.dispatches;
    batches_[w] = batch;
    idle_[w] = Worker::kRunning;
  }

  // First come, first served in each class, but for max_passes overtakings.
  void check_order(const std::vector<std::uint64_t>& batch) {
    for (const Priority priority : {Priority::kInteractive, Priority::kBulk}) {
      std::uint64_t youngest = 0;
      bool any = false;
      for (const std::uint64_t tag : batch) {
        if (ledger_[tag].submit.priority != priority) continue;
        require(!any || tag > youngest, "a batch keeps the order of arrival in a class");
        youngest = tag;
        any = true;
      }
      if (!any) continue;
      for (auto it = ledger_.begin(); it != ledger_.end() && it->first < youngest; ++it) {
        Entry& entry = it->second;
        if (entry.state != Entry::State::kWaiting || entry.submit.priority != priority) continue;
        ++entry.passes;
        ++seen_.overtakings;
        seen_.barriers += entry.passes == limits_.max_passes;
        require(entry.passes <= limits_.max_passes, "overtaken at most max_passes times");
      }
    }
  }

  // Padding is bounded wherever a shorter batch with the same head would have kept the bound.
  void check_waste(const std::vector<std::uint64_t>& batch, double waste) {
    if (waste <= limits_.max_waste + 1e-12) return;
    ++seen_.wasteful;
    std::int64_t tokens = 0, longest = 0, rows = 0;
    for (const std::uint64_t tag : batch) {
      ++rows;
      tokens += ledger_[tag].submit.num_tokens;
      longest = std::max(longest, ledger_[tag].submit.num_tokens);
      const std::int64_t computed = computed_tokens(limits_, rows, tokens, longest);
      const double shorter = static_cast<double>(computed - tokens) / static_cast<double>(computed);
      require(shorter >= waste - 1e-12, "padding beyond the bound only where every shorter batch has at least as much");
    }
  }

  void check_bulk(const std::vector<std::uint64_t>& batch) {
    std::uint64_t oldest_bulk = kNoTag;
    for (const auto& [tag, entry] : ledger_) {
      const bool was_waiting = entry.state == Entry::State::kWaiting || std::count(batch.begin(), batch.end(), tag) > 0;
      if (was_waiting && entry.submit.priority == Priority::kBulk) oldest_bulk = std::min(oldest_bulk, tag);
    }
    const auto is_bulk = [&](std::uint64_t tag) { return ledger_[tag].submit.priority == Priority::kBulk; };
    const bool has_bulk = std::any_of(batch.begin(), batch.end(), is_bulk);
    if (oldest_bulk != kNoTag && without_bulk_ >= limits_.bulk_every) {
      require(batch.front() == oldest_bulk, "bulk that waited long enough begins the batch");
      ++seen_.bulk_heads;
    } else {
      const bool interactive_waited = std::any_of(ledger_.begin(), ledger_.end(),
                                                  [&](const auto& each) {
                                                    return each.second.state == Entry::State::kWaiting &&
                                                           each.second.submit.priority == Priority::kInteractive;
                                                  }) ||
                                      !std::all_of(batch.begin(), batch.end(), is_bulk);
      require(!interactive_waited || !is_bulk(batch.front()), "interactive goes first");
    }
    without_bulk_ = oldest_bulk != kNoTag && !has_bulk ? without_bulk_ + 1 : 0;
    require(without_bulk_ <= limits_.bulk_every, "bulk does not starve");
  }

  void check_invariants() {
    const Counters counters = core_.counters();
    std::int64_t answers = 0;
    for (const std::int64_t count : counters.answered) answers += count;
    require(counters.submitted == static_cast<std::int64_t>(ledger_.size()), "submissions are counted");
    require(counters.waiting == num(Entry::State::kWaiting), "who waits is counted");
    require(counters.in_model == num(Entry::State::kRunning), "who is in the model is counted");
    require(counters.submitted == answers + counters.waiting + counters.in_model, "nobody is lost");
    require(counters.rows >= counters.batches && counters.computed_tokens >= counters.tokens, "batches are counted");
    seen_.measured_caps += limits_.max_queue == 0 && counters.queue_cap != limits_.initial_queue;
    for (const auto& [tag, entry] : ledger_) {
      if (entry.state == Entry::State::kAnswered) continue;
      require(entry.submit.deadline > now_, "nobody waits beyond the deadline");
      require(core_.next_deadline() <= entry.submit.deadline, "the timer knows of every deadline");
    }
    const auto woken = std::count(idle_.begin(), idle_.end(), Worker::kWoken);
    const auto waiting = std::count(idle_.begin(), idle_.end(), Worker::kWaiting);
    if (waiting > 0 && readied_ == kNoWorker) {
      require(counters.waiting <= woken * limits_.max_rows, "no request waits while a worker does");
    }
  }

  std::int64_t num(Entry::State state) const {
    return std::count_if(ledger_.begin(), ledger_.end(), [&](const auto& each) { return each.second.state == state; });
  }
  std::int64_t unfinished() const { return num(Entry::State::kWaiting) + num(Entry::State::kRunning); }
  std::int64_t of_client(std::uint64_t client) const {
    return std::count_if(ledger_.begin(), ledger_.end(), [&](const auto& each) {
      return each.second.state != Entry::State::kAnswered && each.second.submit.client == client;
    });
  }
  std::int64_t of_class(Priority priority) const {
    return std::count_if(ledger_.begin(), ledger_.end(), [&](const auto& each) {
      return each.second.state == Entry::State::kWaiting && each.second.submit.priority == priority;
    });
  }

  static constexpr std::uint64_t kNoTag = static_cast<std::uint64_t>(-1);
  static constexpr std::size_t kNoWorker = static_cast<std::size_t>(-1);

  std::mt19937 random_;
  Seen& seen_;
  const Limits limits_;
  BatcherCore core_;
  Nanoseconds now_ = 1;
  Nanoseconds drain_until_ = BatcherCore::kNever;
  bool closing_ = false;
  std::uint64_t next_tag_ = 0;
  std::uint64_t cancelled_ = kNoTag;
  std::size_t readied_ = kNoWorker, finishing_ = kNoWorker;
  std::int64_t without_bulk_ = 0;
  std::map<std::uint64_t, Entry> ledger_;  // in order of arrival
  std::vector<Worker> idle_;
  std::vector<std::vector<std::uint64_t>> batches_;
  std::vector<Outcome> outcomes_;
};

void test_random_schedules(unsigned first, unsigned count) {
  Seen seen;
  for (unsigned seed = first; seed < first + count; ++seed) {
    seed_under_test = seed;
    Simulation(seed, seen).run();
  }
  if (count == 1) return;
  for (std::size_t i = 0; i < kNumOutcomes; ++i) {
    require(seen.outcomes[i] >= count / 2, "vacuous: outcome " + std::to_string(i) + " came too rarely");
  }
  for (const std::int64_t often :
       {seen.dispatches, seen.full_batches, seen.overtakings, seen.barriers, seen.bulk_heads, seen.late_rows,
        seen.wasteful, seen.drained, seen.stops, seen.stale_cancels, seen.measured_caps}) {
    require(often >= count / 4, "vacuous: an interesting event came too rarely");
  }
  require(seen.second_wakes > 0, "vacuous: never were two workers woken");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    test_random_schedules(static_cast<unsigned>(std::atoi(argv[1])), 1);
  } else {
    const char* seeds = std::getenv("RGALIGN_BATCHER_SEEDS");
    test_random_schedules(1, seeds == nullptr ? kSeeds : static_cast<unsigned>(std::atoi(seeds)));
  }
  std::puts("ok");
}
