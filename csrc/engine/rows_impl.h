// What is done along one row: exponentials, norms, codes, rotary positions.
#pragma once

#include "engine/kernels.h"

namespace rgalign::engine {
namespace {

// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by Cephes' polynomial of degree 7.
template <class Lanes>
inline typename Lanes::Eight exp_eight(typename Lanes::Eight x) {
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23: adding it leaves no bits for a fraction
  x = Lanes::min(Lanes::max(x, Lanes::set(-87.3F)), Lanes::set(88.3F));
  const auto shifted = Lanes::fma(x, Lanes::set(1.44269504F), Lanes::set(kShift));
  const auto n = Lanes::sub(shifted, Lanes::set(kShift));
  auto r = Lanes::fma(n, Lanes::set(-0.693359375F), x);
  r = Lanes::fma(n, Lanes::set(2.12194440e-4F), r);
  auto p = Lanes::set(1.9875691500e-4F);
  p = Lanes::fma(p, r, Lanes::set(1.3981999507e-3F));
  p = Lanes::fma(p, r, Lanes::set(8.3334519073e-3F));
  p = Lanes::fma(p, r, Lanes::set(4.1665795894e-2F));
  p = Lanes::fma(p, r, Lanes::set(1.6666665459e-1F));
  p = Lanes::fma(p, r, Lanes::set(5.0000001201e-1F));
  p = Lanes::add(Lanes::fma(p, Lanes::mul(r, r), r), Lanes::set(1.0F));
  return Lanes::scale_by_power(p, shifted);
}

template <class Lanes>
inline typename Lanes::Eight silu(typename Lanes::Eight gate) {
  const auto one = Lanes::set(1.0F);
  return Lanes::div(gate, Lanes::add(one, exp_eight<Lanes>(Lanes::sub(Lanes::set(0.0F), gate))));
}

// body(lanes, i) for all of n, a multiple of 8.
template <class Lanes, class Body>
inline void each(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + Lanes::kMany <= n; i += Lanes::kMany) body(typename Lanes::Many{}, i);
  for (; i < n; i += kHalf) body(Lanes{}, i);
}

template <class Lanes>
void rms_norm(const float* in, const float* weight, std::int64_t n, float eps, float* out) {
  auto squares = Lanes::set(0.0F);
  for (std::int64_t i = 0; i < n; i += kHalf) {
    const auto x = Lanes::load(in + i);
    squares = Lanes::fma(x, x, squares);
  }
  const float mean = Lanes::sum(squares) / static_cast<float>(n);
  const float factor = 1.0F / Lanes::square_root(mean + eps);
  each<Lanes>(n, [=](auto lanes, std::int64_t i) {
    lanes.store(out + i, lanes.mul(lanes.load(weight + i), lanes.mul(lanes.load(in + i), lanes.set(factor))));
  });
}

// A tile of codes: [n / kGroup][kTileRows][kGroup] in 16 bits; or, of at most kByteLevels, [n / 4][kTileRows][4] bytes
// of code + kByteOffset in the front half of its memory.
template <class Lanes>
float quantize(const float* in, std::int64_t n, int levels, std::int64_t row, std::int16_t* codes) {
  auto largest = Lanes::set(0.0F);
  for (std::int64_t i = 0; i < n; i += kHalf) largest = Lanes::max(largest, Lanes::abs(Lanes::load(in + i)));
  const float max = Lanes::largest(largest);
  const auto factor = Lanes::set(max > 0.0F ? static_cast<float>(levels) / max : 0.0F);
  const float scale = max / static_cast<float>(levels);
  codes += row / kTileRows * kTileRows * n;
  if constexpr (Lanes::kByteLevels > 0) {
    if (levels <= Lanes::kByteLevels) {
      auto* bytes = reinterpret_cast<std::uint8_t*>(codes) + row % kTileRows * 4;
      for (std::int64_t i = 0; i < n; i += kHalf) {
        Lanes::store_bytes(bytes + i * kTileRows, Lanes::mul(Lanes::load(in + i), factor));
      }
      return scale;
    }
  }
  codes += row % kTileRows * Lanes::kGroup;
  for (std::int64_t i = 0; i < n; i += kHalf) {
    Lanes::store_rounded(codes + i * kTileRows, Lanes::mul(Lanes::load(in + i), factor));
  }
  return scale;
}

template <class Lanes>
void rotate(float* head, const float* cosines, const float* sines, std::int64_t half) {
  each<Lanes>(half, [=](auto lanes, std::int64_t i) {
    const auto x = lanes.load(head + i);
    const auto y = lanes.load(head + half + i);
    const auto c = lanes.load(cosines + i);
    const auto s = lanes.load(sines + i);
    lanes.store(head + i, lanes.sub(lanes.mul(x, c), lanes.mul(y, s)));
    lanes.store(head + half + i, lanes.add(lanes.mul(y, c), lanes.mul(x, s)));
  });
}

template <class Lanes>
void exp8(const float* in, float* out) {
  Lanes::store(out, exp_eight<Lanes>(Lanes::load(in)));
}

}  // namespace
}  // namespace rgalign::engine
