// Answers for a thread that comes for them: all that there are at a wake-up, so that a burst costs one.
#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "batcher/batcher.h"

namespace rgalign {

class AnswerQueue : public AnswerSink {
 public:
  void answered(const Answer* answers, std::size_t count) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      answers_.insert(answers_.end(), answers, answers + count);
    }
    there_.notify_one();
  }

  // Waits, then moves all answers into `out`; false: closed, and no answer is left.
  bool wait(std::vector<Answer>& out) {
    out.clear();
    std::unique_lock<std::mutex> lock(mutex_);
    there_.wait(lock, [this] { return closed_ || !answers_.empty(); });
    out.swap(answers_);
    return !out.empty();
  }

  void close() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    there_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable there_;
  std::vector<Answer> answers_;
  bool closed_ = false;
};

}  // namespace rgalign
