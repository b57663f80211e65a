// How many requests a second the batcher alone carries: producers that never pause, a model that does nothing.
// bench/batcher.py runs it for its figures; CTest only asks that all are answered.
//
//   batcher_driver_test [REQUESTS] [PRODUCERS] [WORKERS] [TOKENS]      prints one line of JSON
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "batcher/batcher.h"
#include "batcher/model.h"

namespace {

using namespace rgalign;  // NOLINT

class NoModel : public BatchModel {
 public:
  std::int64_t row_dim() const override { return 1; }
  bool run(const BatchShape& shape, const BatchBuffers&, float* out) override {
    std::fill_n(out, shape.rows, 1.0F);
    return true;
  }
};

class Count : public AnswerSink {
 public:
  void answered(const Answer* answers, std::size_t count) override {
    for (std::size_t i = 0; i < count; ++i) (answers[i].outcome == Outcome::kRow ? rows : others).fetch_add(1);
  }
  std::atomic<std::int64_t> rows{0}, others{0};
};

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int at, std::int64_t value) { return argc > at ? std::atoll(argv[at]) : value; };
  const std::int64_t num_requests = argument(1, 20'000), num_producers = argument(2, 1);
  const std::int64_t num_tokens = argument(4, 128);
  Limits limits;
  limits.num_workers = argument(3, 1);
  limits.max_rows = 64;
  limits.max_tokens = 64 * num_tokens;
  limits.max_request_tokens = num_tokens;
  limits.max_queue = 1024;
  limits.max_per_client = 1024;
  Count count;
  Batcher batcher(limits, {}, count);
  std::vector<NoModel> models(static_cast<std::size_t>(limits.num_workers));
  std::vector<BatchModel*> pointers;
  for (NoModel& model : models) pointers.push_back(&model);
  std::atomic<std::int64_t> refused{0};
  const double cpu_before = cpu_seconds();
  const auto began = std::chrono::steady_clock::now();
  {
    ModelWorkers workers(batcher, count, pointers);
    std::vector<std::thread> producers;
    for (std::int64_t p = 0; p < num_producers; ++p) {
      producers.emplace_back([&, p] {
        const std::vector<std::int32_t> token_ids(static_cast<std::size_t>(num_tokens), 7);
        for (std::int64_t i = p; i < num_requests; i += num_producers) {
          Request request;
          request.tag = static_cast<std::uint64_t>(i);
          request.token_ids = token_ids.data();
          request.num_tokens = num_tokens;
          request.time_left = 10'000'000'000;
          request.client = static_cast<std::uint64_t>(1 + p);
          while (batcher.submit(request).status != Submitted::Status::kAccepted) {
            refused.fetch_add(1);
            std::this_thread::yield();
          }
        }
      });
    }
    for (std::thread& producer : producers) producer.join();
    batcher.close(10'000'000'000);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const double cpu = cpu_seconds() - cpu_before;
  const Counters counters = batcher.counters();
  std::printf(
      "{\"requests\": %lld, \"seconds\": %.4f, \"requests_per_s\": %.0f, \"cpu_us_per_request\": %.3f, "
      "\"rows_per_batch\": %.2f, \"refused_submissions\": %lld}\n",
      static_cast<long long>(num_requests), seconds, static_cast<double>(num_requests) / seconds,
      cpu * 1e6 / static_cast<double>(num_requests),
      static_cast<double>(counters.rows) / static_cast<double>(counters.batches),
      static_cast<long long>(refused.load()));
  const bool complete = count.rows.load() == num_requests && count.others.load() == 0 &&
                        counters.submitted == num_requests + refused.load();
  if (!complete) std::fprintf(stderr, "FAILED: not every request was answered once\n");
  return complete ? 0 : 1;
}
