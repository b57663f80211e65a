// exp's stated error, products against plain sums (integer ones of the largest codes, in 16 bits and in bytes), and
// where codes are written, for every set this CPU has.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "engine/kernels.h"

using namespace rgalign::engine;

namespace {

int failures = 0;

void require(bool holds, const char* what, const char* set) {
  if (holds) return;
  std::printf("%s: %s\n", set, what);
  ++failures;
}

void test_exp(const Kernels& kernels) {
  double worst = 0.0;
  for (int step = 0; step < 350000; ++step) {
    float in[8], out[8];
    for (int i = 0; i < 8; ++i) in[i] = -87.0F + 0.0005F * static_cast<float>(step) + 1e-5F * static_cast<float>(i);
    kernels.exp8(in, out);
    for (int i = 0; i < 8; ++i) worst = std::max(worst, std::fabs(out[i] / std::exp(static_cast<double>(in[i])) - 1.0));
  }
  require(worst < 2e-7, "exp is further off than 2e-7", kernels.name);
  require(worst > 0.0, "exp cannot be exact", kernels.name);
}

// A row's place: see Kernels::quantize.
std::size_t row_place(std::int64_t row, std::int64_t in) {
  return static_cast<std::size_t>(row / kTileRows * kTileRows * in + row % kTileRows * 2);
}

// What lies where the code of (row, k) does: see Product::codes.
int code_at(const std::vector<std::int16_t>& codes, std::int64_t row, std::int64_t k, std::int64_t in, bool bytes) {
  const std::int16_t* place = codes.data() + row_place(row, in);
  if (!bytes) return place[k / 2 * kPairs + k % 2];
  return reinterpret_cast<const std::uint8_t*>(place)[k / 4 * 4 * kTileRows + k % 4] - kByteOffset;
}

// Codes at their limits: what vpmaddubsw would saturate. Unused places of the last tile hold codes that would show.
void test_products(const Kernels& kernels, int levels) {
  constexpr std::int64_t kIn = 40, kPanels = 3;
  for (std::int64_t rows = 1; rows <= 2 * kTileRows + 1; ++rows) {
    std::vector<std::int8_t> weight(kPanels * kPanel * kIn);
    std::vector<std::int16_t> codes(static_cast<std::size_t>((rows / kTileRows + 1) * kTileRows * kIn), 1999);
    for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<std::int8_t>(i % 7 == 0 ? -127 : 127);
    const auto code = [&](std::int64_t row, std::int64_t k) {
      return k == 0 ? levels : (row * kIn + k) % 5 == 0 ? -levels : levels - static_cast<int>(row);
    };
    for (std::int64_t row = 0; row < rows; ++row) {
      float in[kIn];
      for (std::int64_t k = 0; k < kIn; ++k) in[k] = static_cast<float>(code(row, k));
      require(kernels.quantize(in, kIn, levels, codes.data() + row_place(row, kIn)) == 1.0F, "a scale", kernels.name);
    }
    std::vector<std::int32_t> offsets(kPanels * kPanel);
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const std::size_t panel = i / (kPanel * kIn), column = i / 2 % kPanel;
      offsets[panel * kPanel + column] -= kByteOffset * weight[i];
    }
    const std::vector<float> ones(static_cast<std::size_t>(rows) + kPanels * kPanel, 1.0F);
    std::vector<float> out(static_cast<std::size_t>(rows) * kPanels * kPanel);
    kernels.matmul_int8({{nullptr, weight.data(), ones.data(), offsets.data(), nullptr, kIn},
                         0,
                         kPanels,
                         rows,
                         nullptr,
                         codes.data(),
                         levels,
                         ones.data(),
                         0,
                         Epilogue::kStore,
                         out.data(),
                         kPanels * kPanel});
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < kPanels * kPanel; ++column) {
        const std::int64_t panel = column / kPanel * kPanel * kIn;
        std::int64_t sum = 0;
        for (std::int64_t k = 0; k < kIn; ++k) {
          sum +=
              code(row, k) * weight[static_cast<std::size_t>(panel + k / 2 * 2 * kPanel + column % kPanel * 2 + k % 2)];
        }
        require(out[static_cast<std::size_t>(row * kPanels * kPanel + column)] == static_cast<float>(sum),
                "a product is wrong", kernels.name);
      }
    }
  }
}

// One chain of fused multiply-adds whatever the blocks: more rows and a longer inner dimension than any block.
void test_float_products(const Kernels& kernels) {
  constexpr std::int64_t kIn = 1208, kPanels = 2, kRows = 103, kStride = kIn + 8;
  std::vector<float> weight(kPanels * kPanel * kIn), rows(kRows * kStride), out(kRows * kPanels * kPanel);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i % 101) / 37.0F - 1.0F;
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 89) / 31.0F - 1.0F;
  kernels.matmul_fp32({{weight.data(), nullptr, nullptr, nullptr, nullptr, kIn},
                       0,
                       kPanels,
                       kRows,
                       rows.data(),
                       nullptr,
                       0,
                       nullptr,
                       kStride,
                       Epilogue::kStore,
                       out.data(),
                       kPanels * kPanel});
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t column = 0; column < kPanels * kPanel; ++column) {
      float sum = 0.0F;
      for (std::int64_t k = 0; k < kIn; ++k) {
        const std::int64_t at = (column / kPanel * kIn + k) * kPanel + column % kPanel;
        sum = std::fma(rows[static_cast<std::size_t>(row * kStride + k)], weight[static_cast<std::size_t>(at)], sum);
      }
      require(out[static_cast<std::size_t>(row * kPanels * kPanel + column)] == sum, "a float32 product is another sum",
              kernels.name);
    }
  }
}

void test_codes_lie_in_tiles(const Kernels& kernels, int levels) {
  constexpr std::int64_t kIn = 16;
  const bool bytes = levels <= kernels.byte_levels;
  for (std::int64_t row = 0; row < 2 * kTileRows; ++row) {
    float in[kIn];
    for (std::int64_t k = 0; k < kIn; ++k) in[k] = static_cast<float>(k * (k % 2 == 0 ? 1 : -1));
    in[0] = static_cast<float>(levels);
    std::vector<std::int16_t> codes(2 * kTileRows * kIn, 77);
    const float scale = kernels.quantize(in, kIn, levels, codes.data() + row_place(row, kIn));
    require(scale == 1.0F, "a row's scale is wrong", kernels.name);
    std::size_t untouched = 0;
    for (const std::int16_t code : codes) untouched += code == 77 ? 1 : 0;
    require(untouched == codes.size() - kIn / (bytes ? 2 : 1), "another row's codes are written", kernels.name);
    for (std::int64_t k = 0; k < kIn; ++k) {
      require(code_at(codes, row, k, kIn, bytes) == static_cast<int>(in[k]), "a code is wrong", kernels.name);
    }
  }
}

}  // namespace

int main() {
  for (const InstructionSet set : {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    const Kernels* kernels = kernels_of(set);
    if (kernels == nullptr) continue;
    test_exp(*kernels);
    test_float_products(*kernels);
    for (const int levels : {127, 2047}) {
      test_products(*kernels, levels);
      test_codes_lie_in_tiles(*kernels, levels);
    }
  }
  return failures == 0 ? 0 : 1;
}
