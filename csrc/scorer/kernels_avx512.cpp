// AVX-512 with VNNI: 16 lanes.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#include "scorer/kernels_impl.h"

namespace rgalign {
namespace {

struct Avx512 {
  static constexpr int kWidth = 16;
  static constexpr int kPanelVectors = 2;
  static constexpr int kPartVectors = 2;
  static constexpr int kSpan = 4;
  static constexpr int kQueryLevels = 127;  // products are added in 32 bits

  using Float = __m512;
  using Int = __m512i;
  using Eight = __m256;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Float from) { _mm512_storeu_ps(to, from); }
  static Float broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static float fma_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static std::uint32_t above(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

  static Int load_int(const void* from) { return _mm512_loadu_si512(from); }
  static Int broadcast_int(const std::uint32_t* from) { return _mm512_set1_epi32(static_cast<std::int32_t>(*from)); }
  static Int negative_product(Int a, std::int32_t factor) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(-factor)); }
  static Int dot_eight(Int sum, Int low, Int row_low, Int high, Int row_high) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, low, row_low), high, row_high);
  }
  // Masked with all ones: GCC 12's header warns of its own unmasked form (uninitialised pass-through operand).
  static Float to_float(Int from) { return _mm512_maskz_cvtepi32_ps(0xFFFF, from); }

  static Eight zero_eight() { return _mm256_setzero_ps(); }
  static Eight load_eight(const float* from) { return _mm256_loadu_ps(from); }
  static Eight fma_eight(Eight a, Eight b, Eight c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum_eight(Eight x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace

const Kernels detail::avx512_kernels = kernels<Avx512>("avx512");

}  // namespace rgalign

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // defined(__x86_64__)
