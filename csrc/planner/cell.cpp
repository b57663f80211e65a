#include "planner/cell.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <queue>
#include <random>

#include "batcher/core.h"

namespace rgalign {
namespace {

constexpr double kMs = 1e6;
constexpr std::int32_t kNobodyThere = -1;

Nanoseconds nanoseconds(double ms) { return static_cast<Nanoseconds>(std::llround(ms * kMs)); }

// Linear between the measured points, and beyond them with the slope of the nearest two.
double on_curve(const std::vector<double>& xs, const std::vector<double>& ys, double x) {
  if (xs.size() == 1) return ys[0] * x / xs[0];
  const auto above = std::lower_bound(xs.begin() + 1, xs.end() - 1, x);
  const auto right = static_cast<std::size_t>(above - xs.begin());
  const double slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1]);
  return std::max(ys[right - 1] + slope * (x - xs[right - 1]), 0.0);
}

struct Happening {
  enum class Kind : std::uint8_t { kHostDone, kBatchDone, kTick, kCrash, kNotice, kDrain, kBack };
  Nanoseconds at;
  std::uint64_t order;  // of events of the same time
  Kind kind;
  std::int32_t replica;
  std::int32_t worker;
  std::uint64_t life;  // of the replica when it was planned: another life does not know of it
};

struct Later {
  bool operator()(const Happening& a, const Happening& b) const {
    return a.at != b.at ? a.at > b.at : a.order > b.order;
  }
};

struct HostJob {
  enum class Kind : std::uint8_t { kRead, kTower, kAnswer };
  std::int64_t request;
  Kind kind;
  Ended ended = Ended::kWhole;
};

struct Replica {
  std::unique_ptr<BatcherCore> core;
  std::deque<HostJob> host;  // the first is under way
  std::int64_t outstanding = 0;
  Nanoseconds tick = BatcherCore::kNever;
  std::uint64_t life = 0;
  bool routed = true, alive = true;
};

class Cell {
 public:
  Cell(const CellSettings& settings, const std::vector<Nanoseconds>& arrivals)
      : settings_(settings), arrivals_(arrivals), random_(settings.seed) {
    result_.latency_ms.assign(arrivals.size(), 0.0);
    result_.ended.assign(arrivals.size(), static_cast<std::uint8_t>(Ended::kLost));
    length_.resize(arrivals.size());
    for (std::size_t i = 0; i < length_.size(); ++i) {
      length_[i] = settings.draw_lengths ? draw(settings.lengths) : settings.lengths[i % settings.lengths.size()];
    }
    replicas_.resize(static_cast<std::size_t>(settings.replicas));
    for (std::int32_t i = 0; i < settings.replicas; ++i) begin_life(i, 0);
    using Kind = Happening::Kind;
    for (const Outage& outage : settings.outages) {
      plan(outage.from, outage.drained ? Kind::kDrain : Kind::kCrash, outage.replica);
      if (!outage.drained) plan(outage.noticed, Kind::kNotice, outage.replica);
      plan(outage.until, Kind::kBack, outage.replica);
    }
  }

  CellResult run() {
    std::size_t next = 0;
    while (next < arrivals_.size() || !happenings_.empty()) {
      const bool arrives = next < arrivals_.size() && (happenings_.empty() || arrivals_[next] <= happenings_.top().at);
      if (arrives) {
        now_ = arrivals_[next];
        arrive(static_cast<std::int64_t>(next++));
      } else {
        const Happening happening = happenings_.top();
        happenings_.pop();
        if (next == arrivals_.size() && answered_ == arrivals_.size()) break;  // only outages and ticks are left
        now_ = happening.at;
        happen(happening);
      }
    }
    for (Replica& replica : replicas_) count(replica);
    const double seconds = std::max(static_cast<double>(now_) / 1e9, 1e-9);
    const double time = seconds * settings_.replicas;
    result_.seconds = seconds;
    result_.host_busy = host_ms_ / 1e3 / time;
    result_.worker_busy = worker_ms_ / 1e3 / (time * static_cast<double>(settings_.limits.num_workers));
    return std::move(result_);
  }

 private:
  Replica& at(std::int32_t replica) { return replicas_[static_cast<std::size_t>(replica)]; }

  template <typename T>
  T draw(const std::vector<T>& values) {
    return values[std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(random_)];
  }

  void plan(Nanoseconds when, Happening::Kind kind, std::int32_t replica, std::int32_t worker = 0) {
    happenings_.push({when, order_++, kind, replica, worker, at(replica).life});
  }

  void begin_life(std::int32_t number, Nanoseconds now) {
    Replica& replica = at(number);
    count(replica);
    replica.core = std::make_unique<BatcherCore>(settings_.limits);
    replica.host.clear();
    replica.outstanding = 0;
    replica.tick = BatcherCore::kNever;
    replica.routed = replica.alive = true;
    for (std::int32_t worker = 0; worker < settings_.limits.num_workers; ++worker) {
      act(number, replica.core->step(Ready{worker}, now));
    }
  }

  void count(const Replica& replica) {
    if (!replica.core) return;
    const Counters counters = replica.core->counters();
    result_.batches += counters.batches;
    result_.rows += counters.rows;
    result_.most_waiting = std::max(result_.most_waiting, counters.most_waiting);
  }

  std::int32_t route() {
    std::int32_t chosen = kNobodyThere;
    std::int64_t ties = 0;
    for (std::int32_t i = 0; i < settings_.replicas; ++i) {
      if (!at(i).routed) continue;
      if (chosen != kNobodyThere && settings_.routing == Routing::kLeastOutstanding) {
        if (at(i).outstanding > at(chosen).outstanding) continue;
        if (at(i).outstanding < at(chosen).outstanding) ties = 0;
      }
      ++ties;
      if (std::uniform_int_distribution<std::int64_t>(1, ties)(random_) == 1) chosen = i;
    }
    return chosen;
  }

  void arrive(std::int64_t request) {
    const std::int32_t number = route();
    if (number == kNobodyThere || !at(number).alive) {
      ++answered_;  // lost, as it is marked
      return;
    }
    ++at(number).outstanding;
    give_host(number, {request, HostJob::Kind::kRead});
  }

  void give_host(std::int32_t number, HostJob job) {
    Replica& replica = at(number);
    replica.host.push_back(job);
    if (replica.host.size() == 1) start_host(number);
  }

  void start_host(std::int32_t number) {
    const HostJob::Kind kind = at(number).host.front().kind;
    const double ms = kind == HostJob::Kind::kRead    ? settings_.read_ms
                      : kind == HostJob::Kind::kTower ? settings_.tower_ms
                                                      : settings_.answer_ms;
    host_ms_ += ms;
    plan(now_ + nanoseconds(ms), Happening::Kind::kHostDone, number);
  }

  void happen(const Happening& happening) {
    Replica& replica = at(happening.replica);
    using Kind = Happening::Kind;
    const bool of_a_life =
        happening.kind == Kind::kHostDone || happening.kind == Kind::kBatchDone || happening.kind == Kind::kTick;
    if (of_a_life && happening.life != replica.life) return;
    switch (happening.kind) {
      case Kind::kHostDone:
        host_done(happening.replica);
        break;
      case Kind::kBatchDone: {
        const std::size_t rows = replica.core->batch(happening.worker).size();
        outcomes_.assign(std::max<std::size_t>(rows, 1), Outcome::kRow);
        act(happening.replica, replica.core->step(Finish{happening.worker, outcomes_.data()}, now_));
        act(happening.replica, replica.core->step(Ready{happening.worker}, now_));
        break;
      }
      case Kind::kTick:
        replica.tick = BatcherCore::kNever;
        act(happening.replica, replica.core->step(Tick{}, now_));
        break;
      case Kind::kDrain:
      case Kind::kNotice:
        replica.routed = false;
        break;
      case Kind::kCrash:
        answered_ += static_cast<std::size_t>(replica.outstanding);  // lost, as they are marked
        replica.outstanding = 0;
        replica.alive = false;
        replica.host.clear();
        ++replica.life;
        break;
      case Kind::kBack:
        if (replica.alive) {  // drained, the same process goes on in the simulation; it had time to be replaced
          replica.routed = true;
        } else {
          begin_life(happening.replica, now_);
        }
        break;
    }
  }

  void host_done(std::int32_t number) {
    Replica& replica = at(number);
    const HostJob job = replica.host.front();
    replica.host.pop_front();
    const auto request = static_cast<std::size_t>(job.request);
    if (job.kind == HostJob::Kind::kRead) {
      // The tower first, whoever has come meanwhile; it is under way before an answer to this step can be.
      replica.host.push_front({job.request, HostJob::Kind::kTower});
      start_host(number);
      // The deadline counts from when the request is read, as rgalign.recommender gives it to the batcher.
      const Nanoseconds left = nanoseconds(settings_.deadline_ms - settings_.read_ms - settings_.reserve_ms);
      const Submit submit{request, length_[request], now_ + left, kNobody, Priority::kInteractive};
      act(number, replica.core->step(submit, now_));
      return;
    }
    if (!replica.host.empty()) start_host(number);
    if (job.kind == HostJob::Kind::kTower) return;
    result_.latency_ms[request] = static_cast<double>(now_ - arrivals_[request]) / kMs;
    result_.ended[request] = static_cast<std::uint8_t>(job.ended);
    --replica.outstanding;
    ++answered_;
  }

  // The actions are the core's until its next step: nothing here steps it again.
  void act(std::int32_t number, const std::vector<Action>& actions) {
    Replica& replica = at(number);
    woken_.clear();
    for (const Action& action : actions) {
      if (action.kind == Action::Kind::kAnswer) {
        const Ended ended = action.outcome == Outcome::kRow         ? Ended::kWhole
                            : action.outcome == Outcome::kQueueFull ? Ended::kRefused
                                                                    : Ended::kDegraded;
        give_host(number, {static_cast<std::int64_t>(action.tag), HostJob::Kind::kAnswer, ended});
      } else if (action.kind == Action::Kind::kDispatch) {
        dispatch(number, action.worker);
      } else if (action.kind == Action::Kind::kWake) {
        woken_.push_back(action.worker);
      }
    }
    const Nanoseconds due = replica.core->next_deadline();
    if (due < replica.tick) {
      replica.tick = due;
      plan(due, Happening::Kind::kTick, number);
    }
    const std::vector<std::int32_t> woken = woken_;
    for (const std::int32_t worker : woken) act(number, replica.core->step(Ready{worker}, now_));
  }

  void dispatch(std::int32_t number, std::int32_t worker) {
    const BatcherCore& core = *at(number).core;
    std::int64_t tokens = 0, longest = 0;
    const std::vector<std::int32_t>& batch = core.batch(worker);
    for (const std::int32_t slot : batch) {
      tokens += core.num_tokens(slot);
      longest = std::max(longest, core.num_tokens(slot));
    }
    const auto rows = static_cast<std::int64_t>(batch.size());
    const auto computed = static_cast<double>(computed_tokens(settings_.limits, rows, tokens, longest));
    const double ms = on_curve(settings_.curve_tokens, settings_.curve_ms, computed) * draw(settings_.jitter);
    worker_ms_ += ms;
    plan(now_ + nanoseconds(ms), Happening::Kind::kBatchDone, number, worker);
  }

  const CellSettings& settings_;
  const std::vector<Nanoseconds>& arrivals_;
  std::mt19937_64 random_;
  std::vector<std::int64_t> length_;
  std::vector<Replica> replicas_;
  std::priority_queue<Happening, std::vector<Happening>, Later> happenings_;
  std::uint64_t order_ = 0;
  Nanoseconds now_ = 0;
  std::size_t answered_ = 0;
  double host_ms_ = 0, worker_ms_ = 0;
  std::vector<Outcome> outcomes_;
  std::vector<std::int32_t> woken_;
  CellResult result_;
};

}  // namespace

CellResult simulate_cell(const CellSettings& settings, const std::vector<Nanoseconds>& arrivals) {
  return Cell(settings, arrivals).run();
}

}  // namespace rgalign
