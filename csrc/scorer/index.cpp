#include "scorer/index.h"

#include <algorithm>
#include <cmath>

#include "base/float_environment.h"
#include "base/rounding.h"
#include "base/thread_pool.h"

namespace rgalign {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

void pack_fp32(const float* rows, std::int64_t panel, Fp32Panels& out) {
  const std::int64_t first = panel * kPanelRows;
  const std::int64_t count = std::min(kPanelRows, out.num_rows - first);
  float* values = out.values.data() + panel * out.dim * kPanelRows;
  for (std::int64_t lane = 0; lane < count; ++lane) {
    const float* row = rows + (first + lane) * out.dim;
    for (std::int64_t d = 0; d < out.dim; ++d) values[d * kPanelRows + lane] = row[d];
  }
}

// The least scale that keeps codes within kMaxCode and the magnitudes of each four within kMaxFourCodes: what rounding
// can add to four codes, two, is taken off before.
float row_scale(const float* row, std::int64_t dim) {
  double largest = 0.0;
  double largest_four = 0.0;
  for (std::int64_t start = 0; start < dim; start += 8) {
    double four[2] = {};
    for (std::int64_t d = start; d < std::min(start + 8, dim); ++d) {
      const double magnitude = std::fabs(static_cast<double>(row[d]));
      largest = std::max(largest, magnitude);
      four[(d - start) / 2 % 2] += magnitude;
    }
    largest_four = std::max({largest_four, four[0], four[1]});
  }
  return round_up(std::max(largest / kMaxCode, largest_four / (kMaxFourCodes - 2)));
}

void pack_int8_row(const float* row, std::int64_t dim, std::int64_t r, Int8Panels& out) {
  const double scale = row_scale(row, dim);  // 0 for a zero row only
  const double inverse = scale > 0.0 ? 1.0 / scale : 0.0;
  std::int8_t* codes = out.codes.data() + r / kPanelRows * out.dim8 * kPanelRows + r % kPanelRows * 4;
  std::int32_t sum = 0;
  double norm = 0.0;
  double residual = 0.0;
  for (std::int64_t d = 0; d < dim; ++d) {
    const double exact = row[d];
    const double code = round_to_nearest(exact * inverse);
    const double rest = exact - code * scale;
    codes[d / 4 * 4 * kPanelRows + d % 4] = static_cast<std::int8_t>(code);
    sum += static_cast<std::int32_t>(code);
    norm += exact * exact;
    residual += rest * rest;
  }
  const auto at = static_cast<std::size_t>(r);
  out.row_scales[at] = static_cast<float>(scale);
  out.row_sums[at] = sum;
  // A few roundings of float64 sums are behind these; the factor is far above them.
  out.row_norms[at] = round_up(std::sqrt(norm) * (1.0 + 1e-12));
  out.row_residuals[at] = round_up(std::sqrt(residual) * (1.0 + 1e-12));
}

}  // namespace

std::optional<IndexFault> ScorerIndex::check(const float* rows, std::int64_t num_rows, std::int64_t dim) {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (std::int64_t column = 0; column < dim; ++column) {
      // Not-less-or-equal, so that NaN is found too.
      if (!(std::fabs(rows[row * dim + column]) <= kMaxMagnitude)) return IndexFault{row, column};
    }
  }
  return std::nullopt;
}

ScorerIndex::ScorerIndex(const float* rows, std::int64_t num_rows, std::int64_t dim, bool int8) {
  fp32_.num_rows = num_rows;
  fp32_.dim = dim;
  fp32_.num_panels = divide_up(num_rows, kPanelRows);
  fp32_.values.resize(static_cast<std::size_t>(fp32_.num_panels * kPanelRows * dim));
  if (int8) {
    Int8Panels& panels = int8_.emplace();
    panels.dim8 = divide_up(dim, 8) * 8;
    panels.rows.assign(rows, rows + num_rows * dim);
    const auto padded = static_cast<std::size_t>(fp32_.num_panels * kPanelRows);
    panels.codes.resize(padded * static_cast<std::size_t>(panels.dim8));
    panels.row_scales.resize(padded);
    panels.row_sums.resize(padded);
    panels.row_norms.resize(padded);
    panels.row_residuals.resize(padded);
    const auto groups = static_cast<std::size_t>(divide_up(fp32_.num_panels, Int8Panels::kGroupPanels));
    panels.group_norms.resize(groups);
    panels.group_residuals.resize(groups);
  }

  const std::int64_t groups = divide_up(fp32_.num_panels, Int8Panels::kGroupPanels);
  ThreadPool& pool = shared_pool();
  pool.run(groups, pool.max_threads(), [&](std::int64_t group, std::int64_t) {
    const DefaultFloatEnvironment environment;
    const std::int64_t end = std::min((group + 1) * Int8Panels::kGroupPanels, fp32_.num_panels);
    for (std::int64_t panel = group * Int8Panels::kGroupPanels; panel < end; ++panel) pack_fp32(rows, panel, fp32_);
    if (!int8_) return;
    const auto at = static_cast<std::size_t>(group);
    const std::int64_t last_row = std::min(end * kPanelRows, num_rows);
    for (std::int64_t r = group * Int8Panels::kGroupPanels * kPanelRows; r < last_row; ++r) {
      pack_int8_row(rows + r * dim, dim, r, *int8_);
      const auto row = static_cast<std::size_t>(r);
      int8_->group_norms[at] = std::max(int8_->group_norms[at], int8_->row_norms[row]);
      int8_->group_residuals[at] = std::max(int8_->group_residuals[at], int8_->row_residuals[row]);
    }
  });
}

std::int64_t ScorerIndex::num_bytes() const {
  std::size_t bytes = fp32_.values.size() * sizeof(float);
  if (int8_) {
    bytes += sizeof(float) * int8_->rows.size() + int8_->codes.size() + 4 * sizeof(float) * int8_->row_scales.size() +
             2 * sizeof(float) * int8_->group_norms.size();
  }
  return static_cast<std::int64_t>(bytes);
}

}  // namespace rgalign
