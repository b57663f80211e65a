// Attention of rows over keys and values that lie in panels.
#pragma once

#include "engine/kernels.h"
#include "engine/rows_impl.h"
#include "engine/tiles_impl.h"

namespace rgalign::engine {
namespace {

// P panels of keys from `position` on, of which those before `end` count. Where they begin with a panel's first key
// they are written in place; what is behind the last one is overwritten by the next keys or ignored.
template <class Lanes, int P>
inline void score_panels(const Attention& task, std::int64_t position, std::int64_t end, float* scores) {
  const int num_rows = static_cast<int>(task.num_rows);
  const std::int64_t panel_stride = task.head_dim * kPanel, first = position % kPanel;
  const float* keys = task.keys + position / kPanel * panel_stride;
  if (first == 0) {
    return tile_fp32_rows<Lanes, P>(num_rows, task.queries, keys, kPanel, panel_stride, task.head_dim, scores,
                                    task.score_stride, false);
  }
  alignas(64) float tile[Lanes::kFloatRows * P * kPanel];
  tile_fp32_rows<Lanes, P>(num_rows, task.queries, keys, kPanel, panel_stride, task.head_dim, tile, P * kPanel, false);
  for (int r = 0; r < num_rows; ++r) {
    for (std::int64_t i = 0; i < end - position; ++i) {
      scores[r * task.score_stride + i] = tile[r * P * kPanel + first + i];
    }
  }
}

// scores[r][0 .. num_keys) = query . key, packed in sequence order whatever panels the keys lie in.
template <class Lanes>
inline void score_keys(const Attention& task) {
  float* scores = task.scores;
  for (std::int64_t run = 0; run < task.num_runs; ++run) {
    std::int64_t position = task.runs[run].begin;
    while (position < task.runs[run].end) {
      const std::int64_t next_panel = (position / kPanel + 1) * kPanel;
      const bool several = task.runs[run].end > next_panel && Lanes::kFloatPanels > 1;
      const std::int64_t panels_end = next_panel + (several ? (Lanes::kFloatPanels - 1) * kPanel : 0);
      const std::int64_t end = task.runs[run].end < panels_end ? task.runs[run].end : panels_end;
      several ? score_panels<Lanes, Lanes::kFloatPanels>(task, position, end, scores)
              : score_panels<Lanes, 1>(task, position, end, scores);
      scores += end - position;
      position = end;
    }
  }
}

// Scores to weights that are not yet divided by their sum, which is returned; 0 for keys that the row does not see.
template <class Lanes>
inline float weigh(float* scores, std::int64_t visible, std::int64_t num_keys, float scale) {
  using Many = typename Lanes::Many;
  constexpr int kMany = Lanes::kMany;
  const std::int64_t padded = (num_keys + kMany - 1) / kMany * kMany;
  for (std::int64_t i = visible; i < padded; ++i) scores[i] = Lanes::kLowest;
  auto highest = Many::set(Lanes::kLowest);
  for (std::int64_t i = 0; i < padded; i += kMany) highest = Many::max(highest, Many::load(scores + i));
  const auto largest = Many::set(Many::largest(highest));
  const auto factor = Many::set(scale);
  auto sum = Lanes::set(0.0F);
  for (std::int64_t i = 0; i < padded; i += kMany) {
    const auto score = Many::load(scores + i);
    auto weight = exp_eight<Many>(Many::mul(Many::sub(score, largest), factor));
    if (i + kMany > visible) weight = Many::zero_where_lowest(weight, score);
    Many::store(scores + i, weight);
    for (int part = 0; part < kMany; part += kHalf) sum = Lanes::add(sum, Lanes::load(scores + i + part));
  }
  return Lanes::sum(sum);
}

// P panels of columns of the heads' states: weights times values, each row divided by its sum.
template <class Lanes, int P>
inline void mix_values(const Attention& task, const float* sums, std::int64_t column) {
  alignas(64) float tile[Lanes::kFloatRows * P * kPanel];
  const int num_rows = static_cast<int>(task.num_rows);
  const float* weights[Lanes::kFloatRows];
  for (int r = 0; r < num_rows; ++r) weights[r] = task.scores + r * task.score_stride;
  for (std::int64_t run = 0; run < task.num_runs; ++run) {
    const std::int64_t length = task.runs[run].end - task.runs[run].begin;
    const float* values = task.values + task.runs[run].begin * task.value_stride + column;
    tile_fp32_rows<Lanes, P>(num_rows, weights, values, task.value_stride, kPanel, length, tile, P * kPanel, run != 0);
    for (int r = 0; r < num_rows; ++r) weights[r] += length;
  }
  for (int r = 0; r < num_rows; ++r) {
    const auto inverse = Lanes::set(1.0F / sums[r]);
    for (int i = 0; i < P * kPanel; i += kHalf) {
      Lanes::store(task.out[r] + column + i, Lanes::mul(Lanes::load(tile + r * P * kPanel + i), inverse));
    }
  }
}

template <class Lanes>
void attend(const Attention& task) {
  score_keys<Lanes>(task);
  float sums[Lanes::kFloatRows];
  for (std::int64_t r = 0; r < task.num_rows; ++r) {
    float* scores = task.scores + r * task.score_stride;
    sums[r] = weigh<Lanes>(scores, task.visible[r], task.num_keys, task.scale);
  }
  constexpr std::int64_t kColumns = Lanes::kFloatPanels * kPanel;
  std::int64_t column = 0;
  for (; column + kColumns <= task.head_dim; column += kColumns) {
    mix_values<Lanes, Lanes::kFloatPanels>(task, sums, column);
  }
  for (; column < task.head_dim; column += kPanel) mix_values<Lanes, 1>(task, sums, column);
}

}  // namespace
}  // namespace rgalign::engine
