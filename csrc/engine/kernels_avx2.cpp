// AVX2 and FMA: 8 lanes. Without VNNI the only 8-bit product, vpmaddubsw, saturates; vpmaddwd on weights widened as
// they are loaded is exact, and takes activation codes of up to 16 bits at the same speed.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "engine/eight_avx2.h"
#include "engine/kernels_impl.h"

namespace rgalign::engine {
namespace {

struct Avx2 : EightAvx2 {
  static constexpr int kWide = 8;
  using Many = Avx2;
  static constexpr int kMany = 8;
  static constexpr int kFloatRows = 6;
  static constexpr int kFloatPanels = 1;
  static constexpr int kGroup = 2;
  static constexpr int kByteLevels = 0;
  using Wide = __m256;
  using WideInt = __m256i;

  static Wide zero_wide() { return _mm256_setzero_ps(); }
  static Wide load_wide(const float* from) { return _mm256_loadu_ps(from); }
  static void store_wide(float* to, Wide from) { _mm256_storeu_ps(to, from); }
  static Wide broadcast_wide(const float* from) { return _mm256_broadcast_ss(from); }
  static Wide fma_wide(Wide a, Wide b, Wide c) { return _mm256_fmadd_ps(a, b, c); }
  static Wide mul_wide(Wide a, Wide b) { return _mm256_mul_ps(a, b); }

  static WideInt zero_int() { return _mm256_setzero_si256(); }
  static WideInt widen(const std::int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  // sums[v] += a[0] * b[v][2 lane] + a[1] * b[v][2 lane + 1]. Written out: GCC 12 loads all rows' pairs first and then
  // keeps ten of twelve sums in memory.
  static void dot_group(WideInt* sums, const std::int16_t* a, const WideInt* b) {
    using Pair [[gnu::may_alias, gnu::aligned(2)]] = std::int32_t;
    WideInt pair, product;
    __asm__(
        "vpbroadcastd %[a], %[pair]\n\t"
        "vpmaddwd %[b0], %[pair], %[product]\n\t"
        "vpaddd %[product], %[sum0], %[sum0]\n\t"
        "vpmaddwd %[b1], %[pair], %[pair]\n\t"
        "vpaddd %[pair], %[sum1], %[sum1]"
        : [sum0] "+x"(sums[0]), [sum1] "+x"(sums[1]), [pair] "=&x"(pair), [product] "=&x"(product)
        : [a] "m"(*reinterpret_cast<const Pair*>(a)), [b0] "x"(b[0]), [b1] "x"(b[1]));
  }
  static void join(const WideInt* sums, WideInt* whole) {
    whole[0] = sums[0];
    whole[1] = sums[1];
  }
  // Eight codes, two at each of four places 2 * kTileRows apart.
  static void store_rounded(std::int16_t* to, Eight x) {
    const __m128i packed = rounded(x);
    const std::int32_t pairs[] = {_mm_cvtsi128_si32(packed), _mm_extract_epi32(packed, 1), _mm_extract_epi32(packed, 2),
                                  _mm_extract_epi32(packed, 3)};
    for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * 2 * kTileRows, &pairs[i], sizeof pairs[i]);
  }
  static Wide to_float(WideInt from) { return _mm256_cvtepi32_ps(from); }
};

}  // namespace

const Kernels detail::avx2_kernels = kernels<Avx2>("avx2");

}  // namespace rgalign::engine

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // defined(__x86_64__)
