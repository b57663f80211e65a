// AMX: 8-bit products on tiles of 16 rows of 64 bytes; the rest is AVX-512's. A product of 64 codes for 16 rows and 16
// columns is one instruction, and exact. A code of more than 8 bits is 16 * high + low, high a signed byte and low 0 to
// 15: two products, of which the first counts 16 times. Sums wrap, so only the whole one must fit 32 bits.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")
#endif

#include "engine/kernels_impl.h"
#include "engine/lanes_avx512.h"

namespace rgalign::engine {
namespace {

constexpr int kRows = 16;                 // of a tile
constexpr int kTile = kRows * kCodeStep;  // bytes of a tile of codes
constexpr int kSums = kRows * kPanel;     // of a tile of sums
constexpr int kByteLevels = 127;
constexpr int kLowBits = 4;

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows};
};

// Sums that wait for their epilogue: it is computed a few rows at a time beside the next block's products.
struct Block {
  std::int64_t row, panel;
  int num_rows, num_panels;
  const std::int32_t* sums;  // [panel][16][16], and the same of the high halves kSums * 2 behind
  int done;                  // rows
};

template <bool kHalves>
inline __m512 scaled(const Product& product, const Block& block, int r, int panel) {
  const std::int32_t* from = block.sums + panel * kSums + r * kPanel;
  __m512i sum = _mm512_load_si512(from);
  if constexpr (kHalves) {
    const __m512i high = _mm512_load_si512(from + 2 * kSums);
    sum = _mm512_add_epi32(sum, _mm512_maskz_slli_epi32(0xFFFF, high, kLowBits));
  }
  const std::int64_t column = (block.panel + panel) * kPanel;
  const __m512 row_scale = _mm512_set1_ps(product.row_scales[block.row + r]);
  const __m512 channel = _mm512_loadu_ps(product.weight.scales + column);
  const __m512 value = _mm512_mul_ps(_mm512_mul_ps(Avx512::to_float(sum), row_scale), channel);
  if (product.weight.bias == nullptr) return value;
  return _mm512_add_ps(value, _mm512_loadu_ps(product.weight.bias + column));
}

// One row of a block: what `finish` makes of two panels, in sixteen lanes.
template <bool kHalves>
inline void finish_row(const Product& product, const Block& block, int r) {
  float* out = product.out + (block.row + r) * product.out_stride;
  const std::int64_t place = block.panel - product.first_panel;
  const __m512 first = scaled<kHalves>(product, block, r, 0);
  const bool pair = block.num_panels == 2;
  const __m512 second = pair ? scaled<kHalves>(product, block, r, 1) : first;
  if (product.epilogue == Epilogue::kSwiglu) {
    const __m512 gate = _mm512_maskz_shuffle_f32x4(0xFFFF, first, second, 0x44);
    const __m512 up = _mm512_maskz_shuffle_f32x4(0xFFFF, first, second, 0xEE);
    const __m512 value = _mm512_mul_ps(silu<Sixteen>(gate), up);
    _mm512_mask_storeu_ps(out + place * kHalf, pair ? 0xFFFF : 0xFF, value);
    return;
  }
  out += place * kPanel;
  const bool add = product.epilogue == Epilogue::kAdd;
  _mm512_storeu_ps(out, add ? _mm512_add_ps(_mm512_loadu_ps(out), first) : first);
  if (pair) _mm512_storeu_ps(out + kPanel, add ? _mm512_add_ps(_mm512_loadu_ps(out + kPanel), second) : second);
}

template <bool kHalves>
inline void finish_rows(const Product& product, Block& block, int count) {
  const int end = block.done + count < block.num_rows ? block.done + count : block.num_rows;
  for (; block.done < end; ++block.done) finish_row<kHalves>(product, block, block.done);
}

// 16 rows and kPanels of columns of codes of two halves: registers 0 and 1 sum the low ones, 2 and 3 the high ones.
template <int kPanels>
inline void multiply_halves(const Product& product, const std::int8_t* a, const std::int8_t* b, std::int64_t b_stride,
                            std::int64_t steps, std::int32_t* sums, Block& waiting, int rows_a_step) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t step = 0; step < steps; ++step, a += 2 * kTile, b += kTile) {
    _tile_loadd(4, a, kCodeStep);
    _tile_loadd(6, b, kCodeStep);
    _tile_dpbssd(2, 4, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, b + b_stride, kCodeStep);
      _tile_dpbssd(3, 4, 7);
    }
    _tile_loadd(5, a + kTile, kCodeStep);
    _tile_dpbusd(0, 5, 6);
    if constexpr (kPanels == 2) _tile_dpbusd(1, 5, 7);
    finish_rows<true>(product, waiting, rows_a_step);
  }
  _tile_stored(0, sums, kCodeStep);
  _tile_stored(2, sums + 2 * kSums, kCodeStep);
  if constexpr (kPanels == 2) {
    _tile_stored(1, sums + kSums, kCodeStep);
    _tile_stored(3, sums + 3 * kSums, kCodeStep);
  }
}

template <int kPanels>
inline void multiply_bytes(const Product& product, const std::int8_t* a, const std::int8_t* b, std::int64_t b_stride,
                           std::int64_t steps, std::int32_t* sums, Block& waiting, int rows_a_step) {
  _tile_zero(0);
  _tile_zero(1);
  for (std::int64_t step = 0; step < steps; ++step, a += kTile, b += kTile) {
    _tile_loadd(4, a, kCodeStep);
    _tile_loadd(6, b, kCodeStep);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, b + b_stride, kCodeStep);
      _tile_dpbssd(1, 4, 7);
    }
    finish_rows<false>(product, waiting, rows_a_step);
  }
  _tile_stored(0, sums, kCodeStep);
  if constexpr (kPanels == 2) _tile_stored(1, sums + kSums, kCodeStep);
}

template <bool kHalves>
void multiply(const Product& product) {
  alignas(64) std::int32_t sums[2][4 * kSums];
  const std::int64_t in = product.weight.in, steps = (in + kCodeStep - 1) / kCodeStep;
  const auto* codes = reinterpret_cast<const std::int8_t*>(product.codes);
  const int rows_a_step = static_cast<int>((kRows + steps - 1) / steps);
  Block waiting{};
  int turn = 0;
  for (std::int64_t panel = product.first_panel; panel < product.last_panel; panel += 2) {
    const std::int8_t* weight = product.weight.int8 + panel * in * kPanel;
    const int num_panels = panel + 1 < product.last_panel ? 2 : 1;
    const std::int64_t left = product.last_panel - panel - num_panels;
    for (std::int64_t row = 0; row < product.num_rows; row += kRows) {
      const std::int64_t rest = product.num_rows - row;
      const std::int8_t* a = codes + row * steps * kCodeStep * (kHalves ? 2 : 1);
      std::int32_t* into = sums[turn];
      const auto multiplied = kHalves           ? num_panels == 2 ? &multiply_halves<2> : &multiply_halves<1>
                              : num_panels == 2 ? &multiply_bytes<2>
                                                : &multiply_bytes<1>;
      multiplied(product, a, weight, in * kPanel, steps, into, waiting, rows_a_step);
      finish_rows<kHalves>(product, waiting, kRows);
      waiting = {row, panel, rest < kRows ? static_cast<int>(rest) : kRows, num_panels, into, 0};
      turn = 1 - turn;
      if (left > 0) {
        fetch<kRows>(weight + 2 * in * kPanel, (left < 2 ? left : 2) * in * kPanel, row, product.num_rows);
      }
    }
  }
  finish_rows<kHalves>(product, waiting, kRows);
}

}  // namespace

void detail::matmul_int8_amx(const Product& product) {
  // Of this thread; released again, so that tiles are no part of what the system saves and other libraries find none.
  const TileShapes shapes;
  _tile_loadconfig(&shapes);
  if (product.levels <= kByteLevels) {
    multiply<false>(product);
  } else {
    multiply<true>(product);
  }
  _tile_release();
}

// [row / 16][n / 64, rounded up][16][64] bytes; of two halves [row / 16][n / 64, rounded up][high, low][16][64]. Zeros
// behind a row's last code, whatever the weights have there.
float detail::quantize_amx(const float* in, std::int64_t n, int levels, std::int64_t row, std::int16_t* codes) {
  const bool halves = levels > kByteLevels;
  const std::int64_t steps = (n + kCodeStep - 1) / kCodeStep, stride = halves ? 2 * kTile : kTile;
  auto* out = reinterpret_cast<std::int8_t*>(codes) + row / kRows * steps * stride + row % kRows * kCodeStep;
  const auto mask_at = [&](std::int64_t i) {
    return static_cast<__mmask16>(n - i >= 16 ? 0xFFFF : n - i > 0 ? (1 << (n - i)) - 1 : 0);
  };
  __m512 largest = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < n; i += 16) {
    largest = Sixteen::max(largest, Sixteen::abs(_mm512_maskz_loadu_ps(mask_at(i), in + i)));
  }
  const float max = Sixteen::largest(largest);
  const __m512 factor = _mm512_set1_ps(max > 0.0F ? static_cast<float>(levels) / max : 0.0F);
  for (std::int64_t step = 0; step < steps; ++step, out += stride) {
    for (int i = 0; i < kCodeStep; i += 16) {
      const std::int64_t at = step * kCodeStep + i;
      const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask_at(at), in + at), factor);
      const __m512i code = _mm512_maskz_cvtps_epi32(0xFFFF, value);
      auto* high = reinterpret_cast<__m128i*>(out + i);
      if (!halves) {
        _mm_store_si128(high, _mm512_maskz_cvtepi32_epi8(0xFFFF, code));
        continue;
      }
      const __m512i low = _mm512_and_si512(code, _mm512_set1_epi32((1 << kLowBits) - 1));
      _mm_store_si128(high, _mm512_maskz_cvtepi32_epi8(0xFFFF, _mm512_maskz_srai_epi32(0xFFFF, code, kLowBits)));
      _mm_store_si128(high + kTile / 16, _mm512_maskz_cvtepi32_epi8(0xFFFF, low));
    }
  }
  return max / static_cast<float>(levels);
}

}  // namespace rgalign::engine

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // defined(__x86_64__)
