// The catalogue as the CPU scorer reads it: rows in panels of 32 (kernels.h), packed once, then read-only.
#pragma once

#include <cstdint>
#include <optional>

#include "base/large_array.h"
#include "scorer/kernels.h"

namespace rgalign {

struct Fp32Panels {
  std::int64_t num_rows = 0;    // N
  std::int64_t dim = 0;         // D
  std::int64_t num_panels = 0;  // ceil(N / 32)
  LargeArray<float> values;     // [num_panels][D][32]

  const float* row(std::int64_t r) const {  // its coordinates are 32 floats apart
    return values.data() + r / kPanelRows * dim * kPanelRows + r % kPanelRows;
  }
};

// Row r is row_scale[r] * codes(r) + residual(r). Norms are rounded up, so that they bound.
struct Int8Panels {
  std::int64_t dim8 = 0;
  // [N][D] once more, one row after the other: what survives a scan is scored exactly, and in a panel a row is spread
  // over as many cache lines as it has coordinates.
  LargeArray<float> rows;
  LargeArray<std::int8_t> codes;      // [num_panels][dim8 / 4][32][4]
  LargeArray<float> row_scales;       // [num_panels * 32], as all below
  LargeArray<std::int32_t> row_sums;  // sum of codes
  LargeArray<float> row_norms;        // ||row||
  LargeArray<float> row_residuals;    // ||residual||

  // Largest norms of a group of panels: one threshold serves the group.
  static constexpr std::int64_t kGroupPanels = 16;
  LargeArray<float> group_norms, group_residuals;
};

// A value that no catalogue may hold. Up to kMaxMagnitude no sum of the scan can overflow.
struct IndexFault {
  std::int64_t row;
  std::int64_t column;
};

class ScorerIndex {
 public:
  static constexpr std::int64_t kMaxDim = 4096;             // bounds the integer sums: 4096 * 127 * 254 < 2^31
  static constexpr float kMaxMagnitude = 1099511627776.0F;  // 2^40

  // The first value of rows [num_rows, dim] that is not finite or exceeds kMaxMagnitude.
  static std::optional<IndexFault> check(const float* rows, std::int64_t num_rows, std::int64_t dim);

  // Packs checked rows (row-major, not kept); num_rows >= 1, 1 <= dim <= kMaxDim.
  ScorerIndex(const float* rows, std::int64_t num_rows, std::int64_t dim, bool int8);

  const Fp32Panels& fp32() const { return fp32_; }
  const Int8Panels* int8() const { return int8_ ? &*int8_ : nullptr; }
  std::int64_t num_bytes() const;

 private:
  Fp32Panels fp32_;
  std::optional<Int8Panels> int8_;
};

}  // namespace rgalign
