// A model in C++, and the threads that run it.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "batcher/batcher.h"

namespace rgalign {

// One instance for each worker: run() is never called twice at a time.
class BatchModel {
 public:
  virtual ~BatchModel() = default;
  virtual std::int64_t row_dim() const = 0;

  // Fills out[rows, row_dim()]. False: the batch failed as a whole.
  virtual bool run(const BatchShape& shape, const BatchBuffers& batch, float* out) = 0;
};

// Takes batches, runs them, and hands each request its row; a row with NaN or infinity ends as kModelNotFinite alone.
class ModelWorkers {
 public:
  // One worker for each model; they and the batcher outlive this.
  ModelWorkers(Batcher& batcher, AnswerSink& sink, const std::vector<BatchModel*>& models);

  // Closes the batcher, unless that is done, and waits for the models to return: everyone is answered before.
  ~ModelWorkers();
  ModelWorkers(const ModelWorkers&) = delete;
  ModelWorkers& operator=(const ModelWorkers&) = delete;

 private:
  void work(std::int32_t worker, BatchModel& model);

  Batcher& batcher_;
  AnswerSink& sink_;
  std::vector<std::thread> threads_;
};

}  // namespace rgalign
