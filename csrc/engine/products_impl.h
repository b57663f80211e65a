// Matrix products: rows times a packed weight, tile by tile, with bias and epilogue.
#pragma once

#include "engine/kernels.h"
#include "engine/rows_impl.h"
#include "engine/tiles_impl.h"

namespace rgalign::engine {
namespace {

constexpr std::int64_t kBlock = 288;     // of the inner dimension: a float32 panel that stays in a first-level cache
constexpr std::int64_t kBlockRows = 96;  // whose sums wait for the next block

template <class Lanes>
inline void finish(const Product& product, std::int64_t row, int num_rows, std::int64_t panel, const float* tile) {
  const float* bias = product.weight.bias == nullptr ? nullptr : product.weight.bias + panel * kPanel;
  const std::int64_t place = panel - product.first_panel;
  for (int r = 0; r < num_rows; ++r) {
    auto low = Lanes::load(tile + r * kPanel);
    auto high = Lanes::load(tile + r * kPanel + kHalf);
    if (bias != nullptr) {
      low = Lanes::add(low, Lanes::load(bias));
      high = Lanes::add(high, Lanes::load(bias + kHalf));
    }
    float* out = product.out + (row + r) * product.out_stride;
    if (product.epilogue == Epilogue::kSwiglu) {
      Lanes::store(out + place * kHalf, Lanes::mul(silu<Lanes>(low), high));
      continue;
    }
    out += place * kPanel;
    if (product.epilogue == Epilogue::kAdd) {
      low = Lanes::add(Lanes::load(out), low);
      high = Lanes::add(Lanes::load(out + kHalf), high);
    }
    Lanes::store(out, low);
    Lanes::store(out + kHalf, high);
  }
}

template <class Lanes>
void matmul_fp32(const Product& product) {
  alignas(64) float sums[kBlockRows * kPanel];
  const std::int64_t in = product.weight.in;
  for (std::int64_t panel = product.first_panel; panel < product.last_panel; ++panel) {
    const float* weight = product.weight.fp32 + panel * in * kPanel;
    const bool last = panel + 1 == product.last_panel;
    for (std::int64_t begin = 0; begin < product.num_rows; begin += kBlockRows) {
      const std::int64_t rest = product.num_rows - begin;
      const std::int64_t num_rows = rest < kBlockRows ? rest : kBlockRows;
      for (std::int64_t k = 0; k < in; k += kBlock) {
        const std::int64_t inner = in - k < kBlock ? in - k : kBlock;
        for (std::int64_t row = 0; row < num_rows; row += Lanes::kFloatRows) {
          const std::int64_t left = num_rows - row;
          const int count = left < Lanes::kFloatRows ? static_cast<int>(left) : Lanes::kFloatRows;
          const float* rows[Lanes::kFloatRows];
          for (int r = 0; r < count; ++r) rows[r] = product.rows + (begin + row + r) * product.row_stride + k;
          float* tile = sums + row * kPanel;
          tile_fp32_rows<Lanes, 1>(count, rows, weight + k * kPanel, kPanel, 0, inner, tile, kPanel, k > 0);
          if (k + kBlock >= in) finish<Lanes>(product, begin + row, count, panel, tile);
          if (!last) fetch<Lanes::kFloatRows>(weight + (in + k) * kPanel, inner * kPanel * 4, row, num_rows);
        }
      }
    }
  }
}

template <class Lanes>
inline void tile_int8_rows(int num_rows, const std::int16_t* a, const std::int8_t* b, std::int64_t groups,
                           const float* row_scales, const float* scales, float* c) {
  switch (num_rows) {
    case 1:
      return tile_int8<Lanes, 1>(a, b, groups, row_scales, scales, c);
    case 2:
      return tile_int8<Lanes, 2>(a, b, groups, row_scales, scales, c);
    case 3:
      return tile_int8<Lanes, 3>(a, b, groups, row_scales, scales, c);
    case 4:
      return tile_int8<Lanes, 4>(a, b, groups, row_scales, scales, c);
    case 5:
      return tile_int8<Lanes, 5>(a, b, groups, row_scales, scales, c);
    default:
      return tile_int8<Lanes, 6>(a, b, groups, row_scales, scales, c);
  }
}

template <class Lanes, int V>
inline void tile_bytes_rows(int num_rows, const std::uint8_t* a, const std::int8_t* b, std::int64_t in,
                            const std::int32_t* offsets, const float* row_scales, const float* scales, float* c) {
  switch (num_rows) {
    case 1:
      return tile_bytes<Lanes, 1, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 2:
      return tile_bytes<Lanes, 2, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 3:
      return tile_bytes<Lanes, 3, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 4:
      return tile_bytes<Lanes, 4, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 5:
      return tile_bytes<Lanes, 5, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    default:
      return tile_bytes<Lanes, 6, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
  }
}

// V panels beside each other, from `panel` on.
template <class Lanes, int V>
inline void matmul_bytes(const Product& product, std::int64_t panel) {
  alignas(64) float tiles[V * kTileRows * kPanel];
  const std::int64_t in = product.weight.in;
  const std::int8_t* weight = product.weight.int8 + panel * in * kPanel;
  const std::int64_t left = product.last_panel - panel - V;
  for (std::int64_t row = 0; row < product.num_rows; row += kTileRows) {
    const int count = product.num_rows - row < kTileRows ? static_cast<int>(product.num_rows - row) : kTileRows;
    const auto* codes = reinterpret_cast<const std::uint8_t*>(product.codes + row * in);
    tile_bytes_rows<Lanes, V>(count, codes, weight, in, product.weight.offsets + panel * kPanel,
                              product.row_scales + row, product.weight.scales + panel * kPanel, tiles);
    for (int v = 0; v < V; ++v) finish<Lanes>(product, row, count, panel + v, tiles + v * kTileRows * kPanel);
    if (left > 0) fetch(weight + V * in * kPanel, (left < V ? left : V) * in * kPanel, row, product.num_rows);
  }
}

template <class Lanes>
void matmul_int8(const Product& product) {
  if constexpr (Lanes::kByteLevels > 0) {
    if (product.levels <= Lanes::kByteLevels) {
      std::int64_t panel = product.first_panel;
      for (; panel + 2 <= product.last_panel; panel += 2) matmul_bytes<Lanes, 2>(product, panel);
      if (panel < product.last_panel) matmul_bytes<Lanes, 1>(product, panel);
      return;
    }
  }
  alignas(64) float tile[kTileRows * kPanel];
  const std::int64_t in = product.weight.in;
  for (std::int64_t panel = product.first_panel; panel < product.last_panel; ++panel) {
    const std::int8_t* weight = product.weight.int8 + panel * in * kPanel;
    const float* scales = product.weight.scales + panel * kPanel;
    for (std::int64_t row = 0; row < product.num_rows; row += kTileRows) {
      const int count = product.num_rows - row < kTileRows ? static_cast<int>(product.num_rows - row) : kTileRows;
      tile_int8_rows<Lanes>(count, product.codes + row * in, weight, in / Lanes::kGroup, product.row_scales + row,
                            scales, tile);
      finish<Lanes>(product, row, count, panel, tile);
      if (panel + 1 < product.last_panel) fetch(weight + in * kPanel, in * kPanel, row, product.num_rows);
    }
  }
}

}  // namespace
}  // namespace rgalign::engine
