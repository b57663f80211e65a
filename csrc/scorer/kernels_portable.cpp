// Plain C++: other processors, and the definition that the other sets are tested against.
#include <cmath>
#include <cstring>

#include "scorer/kernels_impl.h"

namespace rgalign {
namespace {

struct Portable {
  static constexpr int kWidth = 8;
  static constexpr int kPanelVectors = 4;
  static constexpr int kPartVectors = 2;
  static constexpr int kSpan = 1;
  static constexpr int kQueryLevels = 127;

  struct Float {
    float lane[8];
  };
  struct Int {
    std::int32_t lane[8];
  };
  using Eight = Float;

  static Float zero() { return Float{}; }
  static Float load(const float* from) {
    Float out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
  }
  static void store(float* to, const Float& from) { std::memcpy(to, from.lane, sizeof from.lane); }
  static Float broadcast(const float* from) {
    Float out;
    for (float& lane : out.lane) lane = *from;
    return out;
  }
  static float fma_one(float a, float b, float c) { return std::fma(a, b, c); }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    Float out;
    for (int i = 0; i < 8; ++i) out.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return out;
  }
  static Float multiply(const Float& a, const Float& b) {
    Float out;
    for (int i = 0; i < 8; ++i) out.lane[i] = a.lane[i] * b.lane[i];
    return out;
  }
  static std::uint32_t above(const Float& a, const Float& b) {
    std::uint32_t mask = 0;
    for (int i = 0; i < 8; ++i) mask |= static_cast<std::uint32_t>(a.lane[i] > b.lane[i]) << i;
    return mask;
  }

  static Int load_int(const void* from) {
    Int out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
  }
  static Int broadcast_int(const std::uint32_t* from) {
    Int out;
    for (std::int32_t& lane : out.lane) std::memcpy(&lane, from, sizeof lane);
    return out;
  }
  static Int negative_product(const Int& a, std::int32_t factor) {
    Int out;
    for (int i = 0; i < 8; ++i) out.lane[i] = -a.lane[i] * factor;
    return out;
  }
  static Int dot_four(Int sum, const Int& query, const Int& row) {
    for (int i = 0; i < 8; ++i) {
      std::uint8_t a[4];
      std::int8_t b[4];
      std::memcpy(a, &query.lane[i], 4);
      std::memcpy(b, &row.lane[i], 4);
      sum.lane[i] += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    }
    return sum;
  }
  static Int dot_eight(const Int& sum, const Int& low, const Int& row_low, const Int& high, const Int& row_high) {
    return dot_four(dot_four(sum, low, row_low), high, row_high);
  }
  static Float to_float(const Int& from) {
    Float out;
    for (int i = 0; i < 8; ++i) out.lane[i] = static_cast<float>(from.lane[i]);
    return out;
  }

  static Eight zero_eight() { return zero(); }
  static Eight load_eight(const float* from) { return load(from); }
  static Eight fma_eight(const Eight& a, const Eight& b, const Eight& c) { return fma(a, b, c); }
  static float sum_eight(const Eight& x) {
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = x.lane[i] + x.lane[i + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
};

}  // namespace

const Kernels detail::portable_kernels = kernels<Portable>("portable");

}  // namespace rgalign
