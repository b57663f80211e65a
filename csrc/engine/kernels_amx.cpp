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

// The rows of two tiles of codes, or of one when they are halves, times up to two panels; [tile][panel][16][16] sums.
struct Block {
  std::int64_t row, panel;
  int num_rows, num_panels;
  const std::int32_t* sums;
};

// What is done a little at a time beside a block's products: the epilogue of the block before, whose rows from `row` on
// wait for it, and the fetching of the next panels.
struct Beside {
  Block block;
  int row;
  const char *next, *end;
  int rows_a_step, lines_a_step;
};

template <bool kHalves>
inline __m512i sum_of(const std::int32_t* sums, int r) {
  if constexpr (!kHalves) return _mm512_load_si512(sums + r / kRows * kSums + r * kPanel);
  const __m512i high = _mm512_load_si512(sums + r * kPanel), low = _mm512_load_si512(sums + 2 * kSums + r * kPanel);
  return _mm512_add_epi32(_mm512_maskz_slli_epi32(0xFFFF, high, kLowBits), low);
}

// Rows row to end: what `finish` makes of one or two panels, in sixteen lanes.
template <bool kHalves, Epilogue kEpilogue, int kPanels>
inline void finish_panels(const Product& product, const Block& block, int row, int end) {
  constexpr int kWidth = kEpilogue == Epilogue::kSwiglu ? kHalf : kPanel;
  const float* scales = product.weight.scales + block.panel * kPanel;
  const float* bias = product.weight.bias == nullptr ? nullptr : product.weight.bias + block.panel * kPanel;
  const float* row_scales = product.row_scales + block.row;
  float* out = product.out + block.row * product.out_stride + (block.panel - product.first_panel) * kWidth;
  for (; row < end; ++row) {
    const __m512 row_scale = _mm512_set1_ps(row_scales[row]);
    __m512 values[kPanels];
#pragma GCC unroll 2
    for (int panel = 0; panel < kPanels; ++panel) {
      const __m512 sum = Avx512::to_float(sum_of<kHalves>(block.sums + panel * kSums, row));
      values[panel] = _mm512_mul_ps(_mm512_mul_ps(sum, row_scale), _mm512_loadu_ps(scales + panel * kPanel));
      if (bias != nullptr) values[panel] = _mm512_add_ps(values[panel], _mm512_loadu_ps(bias + panel * kPanel));
    }
    float* to = out + row * product.out_stride;
    if constexpr (kEpilogue == Epilogue::kSwiglu) {
      const __m512 last = values[kPanels - 1];
      const __m512 gate = _mm512_maskz_shuffle_f32x4(0xFFFF, values[0], last, 0x44);
      const __m512 up = _mm512_maskz_shuffle_f32x4(0xFFFF, values[0], last, 0xEE);
      _mm512_mask_storeu_ps(to, kPanels == 2 ? 0xFFFF : 0xFF, _mm512_mul_ps(silu<Sixteen>(gate), up));
    } else {
#pragma GCC unroll 2
      for (int panel = 0; panel < kPanels; ++panel, to += kPanel) {
        constexpr bool kAdd = kEpilogue == Epilogue::kAdd;
        _mm512_storeu_ps(to, kAdd ? _mm512_add_ps(_mm512_loadu_ps(to), values[panel]) : values[panel]);
      }
    }
  }
}

template <bool kHalves, Epilogue kEpilogue>
inline void finish_rows(const Product& product, Beside& beside, int count) {
  const Block& block = beside.block;
  const int row = beside.row, end = row + count < block.num_rows ? row + count : block.num_rows;
  beside.row = end;
  if (block.num_panels == 2) return finish_panels<kHalves, kEpilogue, 2>(product, block, row, end);
  finish_panels<kHalves, kEpilogue, 1>(product, block, row, end);
}

// Registers 4 and 5 hold codes, 6 and 7 weights, 0 to 3 sums.
template <bool kHalves, Epilogue kEpilogue, int kPanels>
inline void multiply_block(const Product& product, const std::int8_t* a, const std::int8_t* b, std::int64_t steps,
                           std::int32_t* sums, Beside& beside) {
  const std::int64_t second = kHalves ? kTile : steps * kTile, b_stride = product.weight.in * kPanel;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t step = 0; step < steps; ++step, a += kHalves ? 2 * kTile : kTile, b += kTile) {
    _tile_loadd(4, a, kCodeStep);
    _tile_loadd(6, b, kCodeStep);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, a + second, kCodeStep);
    if constexpr (kHalves) _tile_dpbusd(2, 5, 6);
    if constexpr (!kHalves) _tile_dpbssd(2, 5, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, b + b_stride, kCodeStep);
      _tile_dpbssd(1, 4, 7);
      if constexpr (kHalves) _tile_dpbusd(3, 5, 7);
      if constexpr (!kHalves) _tile_dpbssd(3, 5, 7);
    }
    for (int line = 0; line < beside.lines_a_step && beside.next < beside.end; ++line, beside.next += kCodeStep) {
      __builtin_prefetch(beside.next, 0, 2);
    }
    finish_rows<kHalves, kEpilogue>(product, beside, beside.rows_a_step);
  }
  _tile_stored(0, sums, kCodeStep);
  _tile_stored(2, sums + 2 * kSums, kCodeStep);
  if constexpr (kPanels == 2) {
    _tile_stored(1, sums + kSums, kCodeStep);
    _tile_stored(3, sums + 3 * kSums, kCodeStep);
  }
}

template <bool kHalves, Epilogue kEpilogue>
void multiply(const Product& product) {
  constexpr int kBlockRows = kHalves ? kRows : 2 * kRows;
  alignas(64) std::int32_t sums[2][4 * kSums];
  const std::int64_t in = product.weight.in, steps = (in + kCodeStep - 1) / kCodeStep;
  const std::int64_t turns = (product.num_rows + kBlockRows - 1) / kBlockRows * steps;
  const auto* codes = reinterpret_cast<const std::int8_t*>(product.codes);
  Beside beside{};
  beside.rows_a_step = static_cast<int>((kBlockRows + steps - 1) / steps);
  int turn = 0;
  for (std::int64_t panel = product.first_panel; panel < product.last_panel; panel += 2) {
    const std::int64_t left = product.last_panel - panel;
    const std::int8_t* weight = product.weight.int8 + panel * in * kPanel;
    const std::int64_t lines = left <= 2 ? 0 : (left == 3 ? 1 : 2) * in * kPanel / kCodeStep;
    beside.next = reinterpret_cast<const char*>(weight + 2 * in * kPanel);
    beside.end = beside.next + lines * kCodeStep;
    beside.lines_a_step = static_cast<int>((lines + turns - 1) / turns);
    for (std::int64_t row = 0; row < product.num_rows; row += kBlockRows, turn = 1 - turn) {
      const std::int8_t* a = codes + row * steps * kCodeStep * (kHalves ? 2 : 1);
      left > 1 ? multiply_block<kHalves, kEpilogue, 2>(product, a, weight, steps, sums[turn], beside)
               : multiply_block<kHalves, kEpilogue, 1>(product, a, weight, steps, sums[turn], beside);
      finish_rows<kHalves, kEpilogue>(product, beside, kBlockRows);
      const std::int64_t rest = product.num_rows - row;
      beside.block = {row, panel, rest < kBlockRows ? static_cast<int>(rest) : kBlockRows, left > 1 ? 2 : 1,
                      sums[turn]};
      beside.row = 0;
    }
  }
  finish_rows<kHalves, kEpilogue>(product, beside, kBlockRows);
}

// Sixteen numbers, or as many as are left and zeros.
inline __m512 load_up_to(const float* from, std::int64_t left) {
  if (left >= 16) return _mm512_loadu_ps(from);
  return left <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << left) - 1), from);
}

// Bytes that were packed from four registers, twice two: the packing goes by quarters of a register.
inline __m512i in_order(__m512i packed) {
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  return _mm512_maskz_permutexvar_epi32(0xFFFF, order, packed);
}

template <bool kHalves>
void multiply(const Product& product) {
  switch (product.epilogue) {
    case Epilogue::kStore:
      return multiply<kHalves, Epilogue::kStore>(product);
    case Epilogue::kAdd:
      return multiply<kHalves, Epilogue::kAdd>(product);
    case Epilogue::kSwiglu:
      return multiply<kHalves, Epilogue::kSwiglu>(product);
  }
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
  __m512 largest = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < n; i += 16) largest = Sixteen::max(largest, Sixteen::abs(load_up_to(in + i, n - i)));
  const float max = Sixteen::largest(largest);
  const __m512 factor = _mm512_set1_ps(max > 0.0F ? static_cast<float>(levels) / max : 0.0F);
  for (std::int64_t step = 0; step < steps; ++step, out += stride) {
    __m512i parts[4];
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const std::int64_t i = step * kCodeStep + part * 16;
      parts[part] = _mm512_maskz_cvtps_epi32(0xFFFF, _mm512_mul_ps(load_up_to(in + i, n - i), factor));
    }
    const __m512i front = _mm512_packs_epi32(parts[0], parts[1]), back = _mm512_packs_epi32(parts[2], parts[3]);
    if (!halves) {
      _mm512_storeu_si512(out, in_order(_mm512_packs_epi16(front, back)));
      continue;
    }
    const __m512i low_bits = _mm512_set1_epi16((1 << kLowBits) - 1);
    const __m512i low = _mm512_packs_epi16(_mm512_and_si512(front, low_bits), _mm512_and_si512(back, low_bits));
    const __m512i high = _mm512_packs_epi16(_mm512_srai_epi16(front, kLowBits), _mm512_srai_epi16(back, kLowBits));
    _mm512_storeu_si512(out, in_order(high));
    _mm512_storeu_si512(out + kTile, in_order(low));
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
