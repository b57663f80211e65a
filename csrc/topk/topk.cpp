#include "topk/topk.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "topk/winners.h"

namespace rgalign {
namespace {

// One thread's share: sessions [begin, end). All memory is taken in the constructor, on the calling thread, so that
// run() cannot throw.
class Worker {
 public:
  Worker(const TopkInput& input, const TopkOutput& output, std::int64_t begin, std::int64_t end)
      : input_(input), output_(output), begin_(begin), end_(end), winners_(static_cast<std::size_t>(output.k)) {
    candidates_.reserve(static_cast<std::size_t>(input.num_candidates));
  }

  void run() noexcept {
    for (std::int64_t session = begin_; session < end_ && !fault_; ++session) {
      winners_.clear();
      if (input_.candidates != nullptr) {
        rank_candidates(session);
      } else {
        rank_catalogue(session);
      }
      winners_.write(output_.rows + session * output_.k, output_.scores + session * output_.k);
    }
  }

  const std::optional<TopkFault>& fault() const { return fault_; }

 private:
  const float* scores_of(std::int64_t session) const { return input_.scores + session * input_.num_intents; }

  void rank_candidates(std::int64_t session) {
    const std::int64_t* given = input_.candidates + session * input_.num_candidates;
    candidates_.clear();
    for (std::int64_t column = 0; column < input_.num_candidates; ++column) {
      if (given[column] < -1 || given[column] >= input_.num_intents) {
        fault_ = TopkFault{TopkFault::Kind::kCandidateOutOfRange, session, column};
        return;
      }
      if (given[column] >= 0) candidates_.push_back(given[column]);
    }
    std::sort(candidates_.begin(), candidates_.end());
    candidates_.erase(std::unique(candidates_.begin(), candidates_.end()), candidates_.end());
    for (const std::int64_t row : candidates_) {
      if (!offer(session, row)) return;
    }
  }

  void rank_catalogue(std::int64_t session) {
    constexpr std::int64_t kBlock = 64;
    const float* scores = scores_of(session);
    for (std::int64_t start = 0; start < input_.num_intents; start += kBlock) {
      const std::int64_t stop = std::min(start + kBlock, input_.num_intents);
      if (winners_.full() && !holds_winner(scores + start, scores + stop)) continue;
      for (std::int64_t row = start; row < stop; ++row) {
        if (!offer(session, row)) return;
      }
    }
  }

  // Almost every block is passed over here. Written as not-less-or-equal so that NaN stops it too; without a branch,
  // so that it is vectorised.
  bool holds_winner(const float* begin, const float* end) const {
    const float worst = winners_.worst_score();
    int found = 0;
    for (const float* score = begin; score != end; ++score) found |= !(*score <= worst);
    return found != 0;
  }

  bool offer(std::int64_t session, std::int64_t row) {
    const float score = scores_of(session)[row];
    if (std::isnan(score)) {
      fault_ = TopkFault{TopkFault::Kind::kNanScore, session, row};
      return false;
    }
    winners_.offer(Entry{score, row});
    return true;
  }

  const TopkInput& input_;
  const TopkOutput& output_;
  std::int64_t begin_;
  std::int64_t end_;
  Winners winners_;
  std::vector<std::int64_t> candidates_;  // of the session in hand, ascending, without padding and repeats
  std::optional<TopkFault> fault_;
};

// Joins on every way out: a thread that could not be started must not leave the others running on borrowed pointers.
class Threads {
 public:
  explicit Threads(std::size_t count) { threads_.reserve(count); }
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  void start(Worker& worker) {
    threads_.emplace_back([&worker] { worker.run(); });
  }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace

std::optional<TopkFault> topk(const TopkInput& input, const TopkOutput& output, std::size_t num_threads) {
  const auto count = static_cast<std::int64_t>(num_threads);
  std::vector<Worker> workers;
  workers.reserve(num_threads);
  for (std::int64_t i = 0; i < count; ++i) {
    workers.emplace_back(input, output, input.num_sessions * i / count, input.num_sessions * (i + 1) / count);
  }
  {
    Threads threads(num_threads - 1);
    for (std::size_t i = 1; i < num_threads; ++i) threads.start(workers[i]);
    workers[0].run();
  }
  for (const Worker& worker : workers) {
    if (worker.fault()) return worker.fault();
  }
  return std::nullopt;
}

}  // namespace rgalign
