// exp's stated error, products against plain sums (integer ones of the largest codes, with any epilogue the same bits
// as portable ones), and that codes of rows lie apart, for every set this CPU has.
#include <algorithm>
#include <cmath>
#include <cstdint>
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

// A product of every unkind shape, as one set computes it.
struct Shape {
  std::int64_t rows, in, panels;
  int levels;
  Epilogue epilogue;
};

int code(const Shape& shape, std::int64_t row, std::int64_t k) {
  if (k == 0) return shape.levels;
  return (row * shape.in + k) % 5 == 0 ? -shape.levels : shape.levels - static_cast<int>(row * 3 + k % 2);
}

// Codes at their limits: what vpmaddubsw would saturate.
int weight_code(const Shape& shape, std::int64_t column, std::int64_t k) {
  return (column * shape.in + k) % 7 == 0 ? -127 : 127 - static_cast<int>(column % 3);
}

std::int64_t out_width(const Shape& shape) {
  return shape.panels * (shape.epilogue == Epilogue::kSwiglu ? kHalf : kPanel);
}

std::vector<float> product(const Kernels& kernels, const Shape& shape, bool plain) {
  const std::int64_t columns = shape.panels * kPanel, in = shape.in;
  // Unused places of the last tile, and what lies behind the last panel, would show in a sum.
  std::vector<std::int16_t> codes(static_cast<std::size_t>(num_codes(shape.rows, in)), 0x5A5A);
  std::vector<std::int8_t> weight(static_cast<std::size_t>(columns * in + kCodeStep * kPanel), 77);
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(columns));
  std::vector<float> scales, bias, row_scales(static_cast<std::size_t>(shape.rows));
  const int group = kernels.group;
  for (std::int64_t column = 0; column < columns; ++column) {
    const std::int64_t panel = column / kPanel * kPanel * in;
    for (std::int64_t k = 0; k < in; ++k) {
      const std::int64_t place = panel + k / group * group * kPanel + column % kPanel * group + k % group;
      weight[static_cast<std::size_t>(place)] = static_cast<std::int8_t>(weight_code(shape, column, k));
      offsets[static_cast<std::size_t>(column)] -= kByteOffset * weight_code(shape, column, k);
    }
    scales.push_back(plain ? 1.0F : 1e-5F * static_cast<float>(column % 11 + 1));
    bias.push_back(0.125F * static_cast<float>(column % 5) - 0.25F);
  }
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    std::vector<float> in_row;
    for (std::int64_t k = 0; k < in; ++k) in_row.push_back(static_cast<float>(code(shape, row, k)));
    const float scale = kernels.quantize(in_row.data(), in, shape.levels, row, codes.data());
    require(scale == 1.0F, "a scale", kernels.name);
    row_scales[static_cast<std::size_t>(row)] = plain ? scale : 1.0F / static_cast<float>(row + 3);
  }
  const std::int64_t stride = out_width(shape) + 8;
  std::vector<float> out(static_cast<std::size_t>(shape.rows * stride), 3.0F);
  kernels.matmul_int8({{nullptr, weight.data(), scales.data(), offsets.data(), plain ? nullptr : bias.data(), in},
                       0,
                       shape.panels,
                       shape.rows,
                       nullptr,
                       codes.data(),
                       shape.levels,
                       row_scales.data(),
                       0,
                       shape.epilogue,
                       out.data(),
                       stride});
  return out;
}

// Integer sums are exact, so every set gives the plain sum, and with scales, bias and any epilogue the first set's
// bits.
void test_products(const Kernels& kernels, int levels) {
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 15, 16, 17, 33}) {
    for (const std::int64_t in : {16, 40, 64, 80, 192}) {
      for (const std::int64_t panels : {1, 2, 3}) {
        const Shape shape{rows, in, panels, levels, Epilogue::kStore};
        const std::vector<float> out = product(kernels, shape, true);
        for (std::int64_t row = 0; row < rows; ++row) {
          for (std::int64_t column = 0; column < out_width(shape) + 8; ++column) {
            std::int64_t sum = 0;
            for (std::int64_t k = 0; k < in; ++k) sum += code(shape, row, k) * weight_code(shape, column, k);
            const float expected = column < out_width(shape) ? static_cast<float>(sum) : 3.0F;
            require(out[static_cast<std::size_t>(row * (out_width(shape) + 8) + column)] == expected,
                    "a product is wrong", kernels.name);
          }
        }
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd, Epilogue::kSwiglu}) {
          const Shape finished{rows, in, panels, levels, epilogue};
          require(product(kernels, finished, false) == product(detail::portable_kernels, finished, false),
                  "a product is not the portable one, bit for bit", kernels.name);
        }
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

// A row's codes are written in places of its own.
void test_rows_of_codes_lie_apart(const Kernels& kernels, int levels) {
  constexpr std::int64_t kIn = 80, kRows = 35;
  std::vector<int> writers(static_cast<std::size_t>(2 * num_codes(kRows, kIn)));
  for (std::int64_t row = 0; row < kRows; ++row) {
    std::vector<float> in(kIn, -1.0F);
    in[0] = 1.0F;
    std::vector<std::int16_t> before(static_cast<std::size_t>(num_codes(kRows, kIn)), 0x5A5A), after = before;
    require(kernels.quantize(in.data(), kIn, levels, row, after.data()) == 1.0F / static_cast<float>(levels),
            "a row's scale is wrong", kernels.name);
    const auto* from = reinterpret_cast<const std::uint8_t*>(before.data());
    const auto* to = reinterpret_cast<const std::uint8_t*>(after.data());
    std::int64_t written = 0;
    for (std::size_t i = 0; i < writers.size(); ++i) {
      if (from[i] == to[i]) continue;
      ++written;
      require(writers[i]++ == 0, "another row's codes are written", kernels.name);
    }
    require(written >= kIn, "codes are missing", kernels.name);
  }
}

}  // namespace

int main() {
  for (const InstructionSet set :
       {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512, InstructionSet::kAmx}) {
    const Kernels* kernels = kernels_of(set);
    if (kernels == nullptr) {
      std::printf("skipped: this CPU, or its system, does not have instruction set %d\n", static_cast<int>(set));
      continue;
    }
    test_exp(*kernels);
    test_float_products(*kernels);
    for (const int levels : {127, kMostLevels}) {
      test_products(*kernels, levels);
      test_rows_of_codes_lie_apart(*kernels, levels);
    }
  }
  return failures == 0 ? 0 : 1;
}
