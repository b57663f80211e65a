#include "base/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <memory>

namespace rgalign {
namespace {

// About 20 us: requests that follow each other find the helpers awake, and an idle process costs nothing.
constexpr int kSpins = 1000;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(std::int64_t num_helpers) : process_(getpid()) {
  helpers_.reserve(static_cast<std::size_t>(num_helpers));
  for (std::int64_t i = 0; i < num_helpers; ++i) helpers_.emplace_back([this] { help(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::Job::work(std::int64_t seat) {
  while (true) {
    const std::int64_t chunk = next_chunk.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= num_chunks) return;
    (*body)(chunk, seat);
  }
}

void ThreadPool::run(std::int64_t num_chunks, std::int64_t max_threads, const Body& body) {
  Job job{&body, num_chunks};
  const std::int64_t seats = std::min({num_chunks, max_threads, this->max_threads()}) - 1;
  if (seats <= 0 || process_ != getpid()) return job.work(0);
  const std::unique_lock<std::mutex> helpers_are_ours(busy_, std::try_to_lock);
  if (!helpers_are_ours) return job.work(0);

  std::int64_t to_wake = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    job_ = &job;
    free_seats_ = seats;
    next_seat_ = 1;
    generation_.fetch_add(1, std::memory_order_release);
    const std::int64_t spinning = static_cast<std::int64_t>(helpers_.size()) - parked_;
    to_wake = std::min(parked_, seats - spinning);
  }
  for (std::int64_t i = 0; i < to_wake; ++i) wake_.notify_one();

  job.work(0);

  {
    const std::lock_guard<std::mutex> lock(mutex_);
    job_ = nullptr;  // nobody joins any more
  }
  for (int spin = 0; spin < kSpins && num_working_.load(std::memory_order_acquire) != 0; ++spin) pause_cpu();
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return num_working_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::help() {
  std::uint64_t seen = 0;
  while (wait_for_job(seen)) {
    Job* job = nullptr;
    std::int64_t seat = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (job_ == nullptr || free_seats_ == 0) continue;
      job = job_;
      --free_seats_;
      seat = next_seat_++;
      num_working_.fetch_add(1, std::memory_order_relaxed);
    }
    job->work(seat);
    const std::lock_guard<std::mutex> lock(mutex_);
    num_working_.fetch_sub(1, std::memory_order_release);
    done_.notify_one();
  }
}

bool ThreadPool::wait_for_job(std::uint64_t& seen) {
  const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
  for (int spin = 0; spin < kSpins && !changed(); ++spin) pause_cpu();
  std::unique_lock<std::mutex> lock(mutex_);
  ++parked_;
  wake_.wait(lock, changed);
  --parked_;
  seen = generation_.load(std::memory_order_acquire);
  return !closing_;
}

ThreadPool& shared_pool() {
  static ThreadPool* const pool = [] {
    const std::int64_t cores = std::thread::hardware_concurrency();
    return std::make_unique<ThreadPool>(std::max<std::int64_t>(cores, 8) - 1).release();
  }();
  return *pool;
}

}  // namespace rgalign
