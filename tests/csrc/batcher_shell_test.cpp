// The threaded batcher under load, and with a model that hangs. Plain, under ThreadSanitizer and under
// AddressSanitizer:
//
//   batcher_shell_test [REQUESTS] [PRODUCERS]        make soak: 5000000 64
//
// Every request must be answered once, with its own row, and each kind of answer must be at least a hundredth of all: a
// run that never fills the queue has shown nothing about full queues.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "batcher/answer_queue.h"
#include "batcher/batcher.h"
#include "batcher/model.h"

namespace {

using namespace rgalign;  // NOLINT

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kRequests = 40'000;
#else
constexpr std::int64_t kRequests = 200'000;
#endif
constexpr Nanoseconds kUs = 1'000;
constexpr Nanoseconds kMs = 1'000'000;
constexpr std::int64_t kLongest = 40;

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

// What each request was told: an answer for a tag that has one already is the failure this test looks for.
class Ledger : public AnswerSink {
 public:
  explicit Ledger(std::int64_t size) : answers_(static_cast<std::size_t>(size)) {
    for (auto& answer : answers_) answer.store(kNone);
  }

  void answered(const Answer* answers, std::size_t count) override {
    for (std::size_t i = 0; i < count; ++i) {
      if (answers[i].outcome == Outcome::kRow) {
        require(answers[i].row != nullptr && answers[i].row[0] == static_cast<float>(answers[i].tag), "its own row");
      }
      note(answers[i].tag, answers[i].outcome);
    }
  }

  void note(std::uint64_t tag, Outcome outcome) {
    const auto before = answers_[tag].exchange(static_cast<std::uint8_t>(outcome));
    require(before == kNone, "one answer for each request");
  }

  bool has(std::uint64_t tag) const { return answers_[tag].load() != kNone; }

  std::array<std::int64_t, kNumOutcomes> counts() const {
    std::array<std::int64_t, kNumOutcomes> counts{};
    for (const auto& answer : answers_) {
      require(answer.load() != kNone, "an answer for each request");
      ++counts[answer.load()];
    }
    return counts;
  }

 private:
  static constexpr std::uint8_t kNone = 255;
  std::vector<std::atomic<std::uint8_t>> answers_;
};

// A request's first token is its tag; the model gives it back, sometimes late, sometimes broken.
class Model : public BatchModel {
 public:
  explicit Model(unsigned seed) : random_(seed) {}
  std::int64_t row_dim() const override { return 2; }
  bool run(const BatchShape& shape, const BatchBuffers& batch, float* out) override {
    const auto kind = random_() % 50;
    if (kind < 20) std::this_thread::sleep_for(std::chrono::microseconds(kind < 3 ? 1500 : 200));
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      const std::int32_t first = batch.token_ids[batch.cu_seqlens[r]];
      const bool broken = first % 11 == 0;
      out[2 * r] = static_cast<float>(first);
      out[2 * r + 1] = broken ? std::numeric_limits<float>::quiet_NaN() : 0.0F;
    }
    return kind % 10 != 1;
  }

 private:
  std::mt19937 random_;
};

void produce(Batcher& batcher, Ledger& ledger, unsigned seed, std::int64_t num_producers, std::uint64_t first,
             std::uint64_t last, std::atomic<std::int64_t>& submitted) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> token_ids(kLongest + 1, 1);
  std::vector<std::pair<RequestId, std::uint64_t>> recent;
  for (std::uint64_t tag = first; tag < last; ++tag) {
    const auto kind = random() % 100;
    token_ids[0] = static_cast<std::int32_t>(tag);
    Request request;
    request.tag = tag;
    request.token_ids = token_ids.data();
    request.num_tokens = kind < 4 ? kLongest + 1 : 1 + static_cast<std::int64_t>(random() % kLongest);
    request.time_left = kind < 8 ? 1 : kind < 60 ? static_cast<Nanoseconds>(random() % 3000) * kUs : 2'000 * kMs;
    request.client = random() % 3 == 0 ? 1 + random() % 4 : kNobody;
    request.priority = random() % 3 == 0 ? Priority::kBulk : Priority::kInteractive;
    Submitted result;
    if (random() % 2 == 0 || !batcher.try_submit(request, result)) result = batcher.submit(request);
    submitted.fetch_add(1);
    if (result.status == Submitted::Status::kRefused) {
      require(result.refusal != Outcome::kQueueFull || result.retry_after > 0, "a full queue says when to come again");
      ledger.note(tag, result.refusal);
      // Nobody comes again at once, or nearly all would be refused.
      if (result.refusal == Outcome::kQueueFull && random() % 4 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(40 * num_producers));
      }
    } else {
      require(result.status == Submitted::Status::kAccepted && result.id != 0, "accepted or refused");
      recent.emplace_back(result.id, tag);
    }
    if (kind > 80 && !recent.empty()) {
      const auto [id, whose] = recent[recent.size() - 1 - random() % std::min<std::size_t>(recent.size(), 16)];
      if (batcher.cancel(id)) ledger.note(whose, Outcome::kCancelled);
    }
    // Bursts fill the queue; pauses let it run empty.
    if (random() % 400 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500));
  }
}

void test_stress(std::int64_t num_requests, std::int64_t num_producers) {
  Limits limits;
  limits.max_rows = 8;
  limits.max_tokens = 256;
  limits.max_request_tokens = kLongest;
  limits.max_queue = 24;
  limits.max_per_client = 4;
  limits.num_workers = 2;
  Ledger ledger(num_requests);
  Batcher batcher(limits, {}, ledger);
  std::atomic<std::int64_t> submitted{0};
  Counters counters;
  {
    Model first(1), second(2);
    ModelWorkers workers(batcher, ledger, {&first, &second});
    std::vector<std::thread> threads;
    for (std::int64_t p = 0; p < num_producers; ++p) {
      const auto begin = static_cast<std::uint64_t>(num_requests * p / num_producers);
      const auto end = static_cast<std::uint64_t>(num_requests * (p + 1) / num_producers);
      threads.emplace_back([&, p, begin, end] {
        produce(batcher, ledger, static_cast<unsigned>(p), num_producers, begin, end, submitted);
      });
    }
    // The last of them meet a closed batcher.
    while (submitted.load() < num_requests * 90 / 100) std::this_thread::sleep_for(std::chrono::microseconds(100));
    batcher.close(kMs);
    for (std::thread& thread : threads) thread.join();
  }
  counters = batcher.counters();
  const auto counts = ledger.counts();
  require(counters.submitted == num_requests, "all are counted");
  require(counters.waiting == 0 && counters.in_model == 0, "nobody is left");
  require(counters.most_waiting <= limits.max_queue, "the queue kept its cap");
  require(counters.late_rows > 0, "vacuous: no row came late");
  for (std::size_t i = 0; i < kNumOutcomes; ++i) {
    require(counts[i] == counters.answered[i], "what the requests were told is what the batcher counted");
    std::printf("outcome %zu: %lld\n", i, static_cast<long long>(counts[i]));
  }
  for (std::size_t i = 0; i < kNumOutcomes; ++i) {
    const bool possible = static_cast<Outcome>(i) != Outcome::kModelShape;  // a C++ engine cannot
    require(!possible || counts[i] * 100 >= num_requests, "vacuous: outcome " + std::to_string(i) + " is too rare");
  }
}

// Hangs until it is let go.
class HungModel : public BatchModel {
 public:
  std::int64_t row_dim() const override { return 1; }
  bool run(const BatchShape& shape, const BatchBuffers& batch, float* out) override {
    std::unique_lock<std::mutex> lock(mutex_);
    hangs_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return let_go_; });
    for (std::int64_t r = 0; r < shape.rows; ++r) out[r] = static_cast<float>(batch.token_ids[batch.cu_seqlens[r]]);
    return true;
  }
  void wait_until_it_hangs() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return hangs_; });
  }
  void let_go() {
    const std::lock_guard<std::mutex> lock(mutex_);
    let_go_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hangs_ = false, let_go_ = false;
};

void test_deadlines_do_not_wait_for_a_hung_model() {
  constexpr std::uint64_t kCount = 300;
  Limits limits;
  limits.max_rows = 4;
  limits.max_queue = 1'000;
  Ledger ledger(kCount);
  Batcher batcher(limits, {}, ledger);
  HungModel model;
  ModelWorkers workers(batcher, ledger, {&model});
  const std::int32_t token = 5;
  for (std::uint64_t tag = 0; tag < kCount; ++tag) {
    Request request;
    request.tag = tag;
    request.token_ids = &token;
    request.num_tokens = 1;
    request.time_left = static_cast<Nanoseconds>(tag == 0 ? 1'500 : 1 + (tag * 37) % 100) * kMs;
    require(batcher.submit(request).status == Submitted::Status::kAccepted, "there is room");
    if (tag == 0) model.wait_until_it_hangs();
  }
  for (std::uint64_t tag = 0; tag < kCount; ++tag) {
    while (!ledger.has(tag)) std::this_thread::sleep_for(std::chrono::microseconds(200));  // forever, if it waits
  }
  const Counters counters = batcher.counters();
  require(counters.answered[static_cast<std::size_t>(Outcome::kDeadlineQueued)] == kCount - 1, "in the queue");
  require(counters.answered[static_cast<std::size_t>(Outcome::kDeadlineRunning)] == 1, "in the model");
  require(counters.late_rows == 0, "while the model still hung");
  batcher.close(0);  // returns, too
  model.let_go();
}

void test_closing_serves_who_waits() {
  constexpr std::uint64_t kCount = 100;
  Limits limits;
  limits.max_rows = 8;
  limits.max_queue = 1'000;
  Ledger ledger(kCount);
  Batcher batcher(limits, {}, ledger);
  HungModel model;
  ModelWorkers workers(batcher, ledger, {&model});
  for (std::uint64_t tag = 0; tag < kCount; ++tag) {
    Request request;
    const std::int32_t token = static_cast<std::int32_t>(tag);
    request.tag = tag;
    request.token_ids = &token;
    request.num_tokens = 1;
    request.time_left = 60'000 * kMs;
    require(batcher.submit(request).status == Submitted::Status::kAccepted, "there is room");
    if (tag == 0) model.wait_until_it_hangs();
  }
  for (std::uint64_t tag = 0; tag < kCount; ++tag) require(!ledger.has(tag), "vacuous: all still wait");
  std::thread closer([&] { batcher.close(60'000 * kMs); });
  while (true) {  // until it is closing
    Request late;
    late.num_tokens = 0;
    if (batcher.submit(late).refusal == Outcome::kClosed) break;
    std::this_thread::yield();
  }
  model.let_go();
  closer.join();
  require(batcher.counters().answered[static_cast<std::size_t>(Outcome::kRow)] == kCount, "all are served");
}

void test_an_answer_queue_gives_all_at_once() {
  AnswerQueue queue;
  const std::vector<Answer> sent{{1, Outcome::kClosed}, {2, Outcome::kCancelled}, {3, Outcome::kClosed}};
  queue.answered(sent.data(), 2);
  queue.answered(sent.data() + 2, 1);
  queue.close();
  std::vector<Answer> received;
  require(queue.wait(received) && received.size() == 3 && received[2].tag == 3, "all at once, in order");
  require(!queue.wait(received) && received.empty(), "and then it is closed");
}

}  // namespace

int main(int argc, char** argv) {
  test_an_answer_queue_gives_all_at_once();
  test_closing_serves_who_waits();
  test_deadlines_do_not_wait_for_a_hung_model();
  test_stress(argc > 1 ? std::atoll(argv[1]) : kRequests, argc > 2 ? std::atoll(argv[2]) : 8);
  std::puts("ok");
}
