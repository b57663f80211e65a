// Eight lanes in AVX2 and FMA, for the AVX2 kernels and for the AVX-512 ones, whose rows add up in the same order.
// Included after the .cpp's `#pragma GCC target`.
#include <immintrin.h>

#include <cstdint>

#include "engine/kernels.h"

namespace rgalign::engine {
namespace {

struct EightAvx2 {
  using Eight = __m256;
  static constexpr float kLowest = -3.0e38F;

  static Eight load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Eight from) { _mm256_storeu_ps(to, from); }
  static Eight set(float value) { return _mm256_set1_ps(value); }
  static Eight add(Eight a, Eight b) { return _mm256_add_ps(a, b); }
  static Eight sub(Eight a, Eight b) { return _mm256_sub_ps(a, b); }
  static Eight mul(Eight a, Eight b) { return _mm256_mul_ps(a, b); }
  static Eight div(Eight a, Eight b) { return _mm256_div_ps(a, b); }
  static Eight fma(Eight a, Eight b, Eight c) { return _mm256_fmadd_ps(a, b, c); }
  static Eight max(Eight a, Eight b) { return _mm256_max_ps(a, b); }
  static Eight min(Eight a, Eight b) { return _mm256_min_ps(a, b); }
  static Eight abs(Eight a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
  static float square_root(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }
  // p * 2^n, n being the integer in the low bits of `shifted`.
  static Eight scale_by_power(Eight p, Eight shifted) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
  }
  static Eight zero_where_lowest(Eight a, Eight score) {
    return _mm256_and_ps(a, _mm256_cmp_ps(score, _mm256_set1_ps(kLowest), _CMP_NEQ_OQ));
  }
  static float sum(Eight x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float largest(Eight x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  // Nearest integers, ties to even, in 16 bits.
  static __m128i rounded(Eight x) {
    constexpr float kShift = 12582912.0F;
    const __m256i bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(kShift)));
    const __m256i codes = _mm256_sub_epi32(bits, _mm256_castps_si256(_mm256_set1_ps(kShift)));
    return _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  }
};

}  // namespace
}  // namespace rgalign::engine
