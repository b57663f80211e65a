// AVX2 and FMA: 8 lanes.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "scorer/kernels_impl.h"

namespace rgalign {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  static constexpr int kPanelVectors = 4;
  static constexpr int kPartVectors = 2;
  static constexpr int kSpan = 2;
  static constexpr int kQueryLevels = 63;
  static_assert(2 * kQueryLevels * kMaxFourCodes < 1 << 15);  // kernels.h says why

  using Float = __m256;
  using Int = __m256i;
  using Eight = __m256;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Float from) { _mm256_storeu_ps(to, from); }
  static Float broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static float fma_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static std::uint32_t above(Float a, Float b) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }

  static Int load_int(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static Int broadcast_int(const std::uint32_t* from) { return _mm256_set1_epi32(static_cast<std::int32_t>(*from)); }
  static Int negative_product(Int a, std::int32_t factor) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(-factor)); }
  static Int dot_eight(Int sum, Int low, Int row_low, Int high, Int row_high) {
    const Int pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, row_low), _mm256_maddubs_epi16(high, row_high));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Float to_float(Int from) { return _mm256_cvtepi32_ps(from); }

  static Eight zero_eight() { return zero(); }
  static Eight load_eight(const float* from) { return load(from); }
  static Eight fma_eight(Eight a, Eight b, Eight c) { return fma(a, b, c); }
  static float sum_eight(Eight x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace

const Kernels detail::avx2_kernels = kernels<Avx2>("avx2");

}  // namespace rgalign

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // defined(__x86_64__)
