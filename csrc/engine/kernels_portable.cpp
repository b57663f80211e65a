// Plain C++: other processors, and the definition that the other sets are tested against.
#include <cmath>
#include <cstring>

#include "engine/kernels_impl.h"

namespace rgalign::engine {
namespace {

struct Portable {
  static constexpr int kWide = 8;
  using Many = Portable;
  static constexpr int kMany = 8;
  static constexpr int kFloatRows = 6;
  static constexpr int kFloatPanels = 1;
  static constexpr int kGroup = 2;
  static constexpr int kByteLevels = 0;
  static constexpr float kLowest = -3.0e38F;
  struct Eight {
    float lane[8];
  };
  struct WideInt {
    std::int32_t lane[8];
  };
  using Wide = Eight;

  template <class Function>
  static Eight each(Function function) {
    Eight out;
    for (int i = 0; i < 8; ++i) out.lane[i] = function(i);
    return out;
  }

  static Eight load(const float* from) {
    Eight out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
  }
  static void store(float* to, const Eight& from) { std::memcpy(to, from.lane, sizeof from.lane); }
  static Eight set(float value) {
    return each([&](int) { return value; });
  }
  static Eight add(const Eight& a, const Eight& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Eight sub(const Eight& a, const Eight& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Eight mul(const Eight& a, const Eight& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Eight div(const Eight& a, const Eight& b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static Eight fma(const Eight& a, const Eight& b, const Eight& c) {
    return each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static Eight max(const Eight& a, const Eight& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Eight min(const Eight& a, const Eight& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Eight abs(const Eight& a) {
    return each([&](int i) { return std::fabs(a.lane[i]); });
  }
  static float square_root(float a) { return std::sqrt(a); }
  static Eight scale_by_power(const Eight& p, const Eight& shifted) {
    return each([&](int i) {
      std::uint32_t bits, power;
      std::memcpy(&bits, &p.lane[i], sizeof bits);
      std::memcpy(&power, &shifted.lane[i], sizeof power);
      bits += power << 23;
      float out;
      std::memcpy(&out, &bits, sizeof out);
      return out;
    });
  }
  static Eight zero_where_lowest(const Eight& a, const Eight& score) {
    return each([&](int i) { return score.lane[i] == kLowest ? 0.0F : a.lane[i]; });
  }
  static float sum(const Eight& x) {
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = x.lane[i] + x.lane[i + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
  static float largest(const Eight& x) {
    float out = x.lane[0];
    for (const float lane : x.lane) out = lane > out ? lane : out;
    return out;
  }
  static void store_rounded(std::int16_t* to, const Eight& x) {
    constexpr float kShift = 12582912.0F;
    for (int i = 0; i < 8; ++i) {
      to[i / 2 * 2 * kTileRows + i % 2] = static_cast<std::int16_t>((x.lane[i] + kShift) - kShift);
    }
  }

  static Wide zero_wide() { return set(0.0F); }
  static Wide load_wide(const float* from) { return load(from); }
  static void store_wide(float* to, const Wide& from) { store(to, from); }
  static Wide broadcast_wide(const float* from) { return set(*from); }
  static Wide fma_wide(const Wide& a, const Wide& b, const Wide& c) { return fma(a, b, c); }
  static Wide mul_wide(const Wide& a, const Wide& b) { return mul(a, b); }

  // Sixteen codes in a register of eight places, two a place, as the others have them.
  static WideInt zero_int() { return WideInt{}; }
  static WideInt widen(const std::int8_t* from) {
    std::int16_t codes[16];
    for (int i = 0; i < 16; ++i) codes[i] = from[i];
    WideInt out;
    std::memcpy(out.lane, codes, sizeof codes);
    return out;
  }
  static void dot_group(WideInt* sums, const std::int16_t* a, const WideInt* b) {
    for (int v = 0; v < kPanel / kWide; ++v) {
      std::int16_t codes[16];
      std::memcpy(codes, b[v].lane, sizeof codes);
      for (int i = 0; i < 8; ++i) sums[v].lane[i] += a[0] * codes[2 * i] + a[1] * codes[2 * i + 1];
    }
  }
  static void join(const WideInt* sums, WideInt* whole) {
    for (int v = 0; v < kPanel / kWide; ++v) whole[v] = sums[v];
  }
  static Wide to_float(const WideInt& from) {
    return each([&](int i) { return static_cast<float>(from.lane[i]); });
  }
};

}  // namespace

const Kernels detail::portable_kernels = kernels<Portable>("portable");

}  // namespace rgalign::engine
