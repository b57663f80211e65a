// A fixed set of threads that help a caller with numbered chunks of work. The caller always works too and never waits
// for a thread that has not begun, so a helper that is late, busy elsewhere or gone (after a fork) costs speed only.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace rgalign {

class ThreadPool {
 public:
  // body(chunk, seat): `seat` < max_threads is the same for all chunks that one thread takes, and no two threads share
  // one, so it may index scratch memory. A thread takes its chunks in ascending order. Must not throw.
  using Body = std::function<void(std::int64_t chunk, std::int64_t seat)>;

  explicit ThreadPool(std::int64_t num_helpers);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::int64_t max_threads() const { return static_cast<std::int64_t>(helpers_.size()) + 1; }

  // Runs every chunk in [0, num_chunks) once and returns when all are done. Safe to call from several threads: while
  // the helpers are at work for one caller, another does its chunks alone.
  void run(std::int64_t num_chunks, std::int64_t max_threads, const Body& body);

 private:
  struct Job {
    const Body* body;
    std::int64_t num_chunks;
    std::atomic<std::int64_t> next_chunk{0};
    void work(std::int64_t seat);
  };

  void help();
  bool wait_for_job(std::uint64_t& seen);  // false: the pool is closing

  const std::int64_t process_;
  std::mutex busy_;  // held by the caller whom the helpers serve

  std::mutex mutex_;                          // guards all below that is not atomic
  std::condition_variable wake_, done_;       // a job is there or the pool closes; the last helper has left the job
  Job* job_ = nullptr;                        // open to helpers while not null
  std::int64_t free_seats_ = 0;               // seats of that job not taken
  std::int64_t next_seat_ = 1;                // 0 is the caller's
  std::int64_t parked_ = 0;                   // helpers waiting on wake_
  bool closing_ = false;                      //
  std::atomic<std::uint64_t> generation_{0};  // of jobs; spun on without the mutex
  std::atomic<std::int64_t> num_working_{0};  // helpers inside job_->work
  std::vector<std::thread> helpers_;
};

// The pool of this process, made on first use: as many threads as the machine has cores, and at least eight, so that a
// caller who asks for several gets them. It is never destroyed: parked threads need no farewell, and a child made by
// fork, where they do not exist, could not give it.
ThreadPool& shared_pool();

}  // namespace rgalign
