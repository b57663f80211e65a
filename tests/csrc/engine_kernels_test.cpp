// exp's stated error, and integer products of the largest codes against plain sums, for every set this CPU has.
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

// Codes at their limits: what vpmaddubsw would saturate.
void test_products(const Kernels& kernels) {
  constexpr std::int64_t kIn = 40;
  for (std::int64_t rows = 1; rows <= 2 * kTileRows + 1; ++rows) {
    std::vector<std::int8_t> weight(kPanel * kIn);
    std::vector<std::int16_t> codes(static_cast<std::size_t>(rows * kIn));
    for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<std::int8_t>(i % 7 == 0 ? -127 : 127);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::int16_t>(i % 5 == 0 ? -2047 : 2047);
    const std::vector<float> ones(static_cast<std::size_t>(rows) + kPanel, 1.0F);
    std::vector<float> out(static_cast<std::size_t>(rows) * kPanel);
    kernels.matmul_int8({{nullptr, weight.data(), ones.data(), nullptr, kIn},
                         0,
                         1,
                         rows,
                         nullptr,
                         codes.data(),
                         ones.data(),
                         kIn,
                         Epilogue::kStore,
                         out.data(),
                         kPanel});
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < kPanel; ++column) {
        std::int64_t sum = 0;
        for (std::int64_t k = 0; k < kIn; ++k) {
          sum += static_cast<std::int64_t>(codes[static_cast<std::size_t>(row * kIn + k)]) *
                 weight[static_cast<std::size_t>(k / 2 * 2 * kPanel + column * 2 + k % 2)];
        }
        require(out[static_cast<std::size_t>(row * kPanel + column)] == static_cast<float>(sum), "a product is wrong",
                kernels.name);
      }
    }
  }
}

}  // namespace

int main() {
  for (const InstructionSet set : {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    const Kernels* kernels = kernels_of(set);
    if (kernels == nullptr) continue;
    test_exp(*kernels);
    test_products(*kernels);
  }
  return failures == 0 ? 0 : 1;
}
