// Products of a few rows with a few panels, whose sums stay in registers: the inside of matrix products and attention.
#pragma once

#include "engine/kernels.h"

namespace rgalign::engine {
namespace {

// What the next panel's tiles will read, a part of it beside each of this panel's tiles of kRows.
template <int kRows = kTileRows>
inline void fetch(const void* next, std::int64_t bytes, std::int64_t row, std::int64_t num_rows) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t lines = bytes / kLine;
  const char* from = static_cast<const char*>(next);
  const std::int64_t end = row + kRows < num_rows ? lines * (row + kRows) / num_rows : lines;
  for (std::int64_t line = lines * row / num_rows; line < end; ++line) __builtin_prefetch(from + line * kLine, 0, 2);
}

// c[r][0 .. P * kPanel) (+)= sum over k of a[r][k] * b[k * b_stride + ..], of P panels that lie panel_stride apart.
template <class Lanes, int P, int R>
inline void tile_fp32(const float* const* a, const float* b, std::int64_t b_stride, std::int64_t panel_stride,
                      std::int64_t inner, float* c, std::int64_t c_stride, bool add) {
  constexpr int kParts = kPanel / Lanes::kWide, V = P * kParts;
  typename Lanes::Wide sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sums[r][v] = add ? Lanes::load_wide(c + r * c_stride + v * Lanes::kWide) : Lanes::zero_wide();
    }
  }
  const float* rows[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) rows[r] = a[r];
  for (std::int64_t k = 0; k < inner; ++k) {
    typename Lanes::Wide columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      columns[v] = Lanes::load_wide(b + v / kParts * panel_stride + v % kParts * Lanes::kWide);
    }
    b += b_stride;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto value = Lanes::broadcast_wide(rows[r] + k);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = Lanes::fma_wide(value, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) Lanes::store_wide(c + r * c_stride + v * Lanes::kWide, sums[r][v]);
  }
}

template <class Lanes, int P, int R = Lanes::kFloatRows>
void tile_fp32_rows(int num_rows, const float* const* a, const float* b, std::int64_t b_stride,
                    std::int64_t panel_stride, std::int64_t inner, float* c, std::int64_t c_stride, bool add) {
  if constexpr (R > 1) {
    if (num_rows < R) {
      return tile_fp32_rows<Lanes, P, R - 1>(num_rows, a, b, b_stride, panel_stride, inner, c, c_stride, add);
    }
  }
  tile_fp32<Lanes, P, R>(a, b, b_stride, panel_stride, inner, c, c_stride, add);
}

// a is [in / kGroup][kTileRows][kGroup].
template <class Lanes, int R>
inline void tile_int8(const std::int16_t* a, const std::int8_t* b, std::int64_t groups, const float* row_scales,
                      const float* scales, float* c) {
  constexpr int V = kPanel / Lanes::kWide;
  constexpr int kSums = V * Lanes::kGroup / 2;  // two products a lane
  typename Lanes::WideInt sums[R][kSums];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kSums; ++v) sums[r][v] = Lanes::zero_int();
  }
  for (std::int64_t k = 0; k < groups; ++k) {
    typename Lanes::WideInt columns[kSums];
#pragma GCC unroll 8
    for (int v = 0; v < kSums; ++v) columns[v] = Lanes::widen(b + v * 2 * Lanes::kWide);
    b += Lanes::kGroup * kPanel;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) Lanes::dot_group(sums[r], a + Lanes::kGroup * r, columns);
    a += Lanes::kGroup * kTileRows;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    typename Lanes::WideInt whole[V];
    Lanes::join(sums[r], whole);
    const auto row_scale = Lanes::broadcast_wide(row_scales + r);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const auto channel = Lanes::load_wide(scales + v * Lanes::kWide);
      const auto product = Lanes::mul_wide(Lanes::mul_wide(Lanes::to_float(whole[v]), row_scale), channel);
      Lanes::store_wide(c + r * kPanel + v * Lanes::kWide, product);
    }
  }
}

// As tile_int8, of bytes and with V panels beside each other: c[v][R][kPanel], b and a of four codes a step.
template <class Lanes, int R, int V>
inline void tile_bytes(const std::uint8_t* a, const std::int8_t* b, std::int64_t b_stride, std::int64_t quads,
                       const std::int32_t* offsets, const float* row_scales, const float* scales, float* c) {
  typename Lanes::WideInt sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = Lanes::load_int(offsets + v * kPanel);
  }
  for (std::int64_t k = 0; k < quads; ++k) {
    typename Lanes::WideInt columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) columns[v] = Lanes::load_quads(b + v * b_stride);
    b += 4 * kPanel;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto codes = Lanes::broadcast_quad(a + 4 * r);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = Lanes::dot_quads(sums[r][v], codes, columns[v]);
    }
    a += 4 * kTileRows;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const auto row_scale = Lanes::broadcast_wide(row_scales + r);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const auto channel = Lanes::load_wide(scales + v * kPanel);
      const auto product = Lanes::mul_wide(Lanes::mul_wide(Lanes::to_float(sums[r][v]), row_scale), channel);
      Lanes::store_wide(c + (v * kTileRows + r) * kPanel, product);
    }
  }
}

}  // namespace
}  // namespace rgalign::engine
