#include "batcher/model.h"

#include <algorithm>
#include <cmath>

namespace rgalign {

ModelWorkers::ModelWorkers(Batcher& batcher, AnswerSink& sink, const std::vector<BatchModel*>& models)
    : batcher_(batcher), sink_(sink) {
  for (std::size_t i = 0; i < models.size(); ++i) {
    threads_.emplace_back([this, i, model = models[i]] { work(static_cast<std::int32_t>(i), *model); });
  }
}

ModelWorkers::~ModelWorkers() {
  batcher_.close(0);
  for (std::thread& thread : threads_) thread.join();
}

void ModelWorkers::work(std::int32_t worker, BatchModel& model) {
  const Limits& limits = batcher_.limits();
  const auto max_rows = static_cast<std::size_t>(limits.max_rows);
  const auto dim = static_cast<std::size_t>(model.row_dim());
  std::vector<std::int32_t> token_ids(static_cast<std::size_t>(limits.max_tokens)), positions(token_ids.size());
  std::vector<std::int32_t> cu_seqlens(max_rows + 1);
  std::vector<float> rows(max_rows * dim);
  std::vector<Outcome> outcomes(max_rows);
  std::vector<std::uint8_t> won(max_rows);
  std::vector<std::uint64_t> tags;
  std::vector<Answer> answers;
  const BatchBuffers buffers{token_ids.data(), positions.data(), cu_seqlens.data()};
  BatchShape shape;
  while (batcher_.take(worker, buffers, shape, tags)) {
    const bool ran = model.run(shape, buffers, rows.data());
    for (std::size_t r = 0; r < tags.size(); ++r) {
      const float* row = rows.data() + r * dim;
      const bool finite = std::all_of(row, row + dim, [](float value) { return std::isfinite(value); });
      outcomes[r] = !ran ? Outcome::kModelRaised : finite ? Outcome::kRow : Outcome::kModelNotFinite;
    }
    if (!batcher_.finish(worker, outcomes.data(), won.data())) return;
    answers.clear();
    for (std::size_t r = 0; r < tags.size(); ++r) {
      const float* row = outcomes[r] == Outcome::kRow ? rows.data() + r * dim : nullptr;
      if (won[r] != 0) answers.push_back({tags[r], outcomes[r], row});
    }
    if (!answers.empty()) sink_.answered(answers.data(), answers.size());
  }
}

}  // namespace rgalign
