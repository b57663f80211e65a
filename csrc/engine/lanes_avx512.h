// Sixteen lanes in AVX-512 with VNNI, one panel a register: for the AVX-512 kernels and, beside the tiles, the AMX
// ones. Included after the .cpp's `#pragma GCC target`.
#include <immintrin.h>

#include <cstdint>

#include "engine/eight_avx2.h"
#include "engine/kernels.h"

namespace rgalign::engine {
namespace {

// Sixteen numbers that have nothing to do with each other, in the place of EightAvx2's eight.
struct Sixteen {
  using Eight = __m512;
  static Eight load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Eight from) { _mm512_storeu_ps(to, from); }
  static Eight set(float value) { return _mm512_set1_ps(value); }
  static Eight add(Eight a, Eight b) { return _mm512_add_ps(a, b); }
  static Eight sub(Eight a, Eight b) { return _mm512_sub_ps(a, b); }
  static Eight mul(Eight a, Eight b) { return _mm512_mul_ps(a, b); }
  static Eight div(Eight a, Eight b) { return _mm512_div_ps(a, b); }
  static Eight fma(Eight a, Eight b, Eight c) { return _mm512_fmadd_ps(a, b, c); }
  static Eight max(Eight a, Eight b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }
  static Eight min(Eight a, Eight b) { return _mm512_maskz_min_ps(0xFFFF, a, b); }
  static Eight abs(Eight a) { return _mm512_abs_ps(a); }
  static float largest(Eight x) {
    const __m256d low = _mm512_maskz_extractf64x4_pd(0xF, _mm512_castps_pd(x), 0);
    const __m256d high = _mm512_maskz_extractf64x4_pd(0xF, _mm512_castps_pd(x), 1);
    return EightAvx2::largest(_mm256_max_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high)));
  }
  static Eight zero_where_lowest(Eight a, Eight score) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(score, set(EightAvx2::kLowest), _CMP_NEQ_OQ), a);
  }
  static Eight scale_by_power(Eight p, Eight shifted) {
    const __m512i power = _mm512_maskz_slli_epi32(0xFFFF, _mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power));
  }
};

// Masked with all ones throughout: GCC 12's header warns of its own unmasked forms (uninitialised pass-through
// operand).
struct Avx512 : EightAvx2 {
  static constexpr int kWide = 16;
  using Many = Sixteen;
  static constexpr int kMany = 16;
  static constexpr int kFloatRows = 12;
  static constexpr int kFloatPanels = 2;
  static constexpr int kGroup = 4;
  static constexpr int kByteLevels = 127;
  using Wide = __m512;
  using WideInt = __m512i;

  static Wide zero_wide() { return _mm512_setzero_ps(); }
  static Wide load_wide(const float* from) { return _mm512_loadu_ps(from); }
  static void store_wide(float* to, Wide from) { _mm512_storeu_ps(to, from); }
  static Wide broadcast_wide(const float* from) { return _mm512_set1_ps(*from); }
  static Wide fma_wide(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }
  static Wide mul_wide(Wide a, Wide b) { return _mm512_mul_ps(a, b); }

  static WideInt zero_int() { return _mm512_setzero_si512(); }
  static WideInt load_int(const std::int32_t* from) { return _mm512_loadu_si512(from); }
  static Wide to_float(WideInt from) { return _mm512_maskz_cvtepi32_ps(0xFFFF, from); }

  // Of codes in 16 bits, a sum's register holds two lanes a column, of eight columns: as vpmovsxbw widens groups of
  // four. Twice the chains of additions, too, which hides their latency.
  static WideInt widen(const std::int8_t* from) {
    return _mm512_maskz_cvtepi8_epi16(0xFFFFFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void dot_group(WideInt* sums, const std::int16_t* a, const WideInt* b) {
    std::int64_t group;
    __builtin_memcpy(&group, a, sizeof group);
    const __m512i codes = _mm512_set1_epi64(group);
    sums[0] = _mm512_dpwssd_epi32(sums[0], codes, b[0]);
    sums[1] = _mm512_dpwssd_epi32(sums[1], codes, b[1]);
  }
  static void join(const WideInt* sums, WideInt* whole) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    whole[0] = _mm512_add_epi32(_mm512_permutex2var_epi32(sums[0], even, sums[1]),
                                _mm512_permutex2var_epi32(sums[0], odd, sums[1]));
  }
  // Eight codes, four at each of two places 4 * kTileRows apart; in 16 bits, and in bytes + kByteOffset.
  static void store_rounded(std::int16_t* to, Eight x) {
    const __m128i codes = rounded(x);
    const std::int64_t groups[] = {_mm_cvtsi128_si64(codes), _mm_extract_epi64(codes, 1)};
    for (int i = 0; i < 2; ++i) __builtin_memcpy(to + i * 4 * kTileRows, &groups[i], sizeof groups[i]);
  }
  static void store_bytes(std::uint8_t* to, Eight x) {
    const __m128i codes = rounded(x);
    const __m128i bytes = _mm_xor_si128(_mm_packs_epi16(codes, codes), _mm_set1_epi8(static_cast<char>(kByteOffset)));
    const std::int32_t groups[] = {_mm_cvtsi128_si32(bytes), _mm_extract_epi32(bytes, 1)};
    for (int i = 0; i < 2; ++i) __builtin_memcpy(to + i * 4 * kTileRows, &groups[i], sizeof groups[i]);
  }

  static WideInt load_quads(const std::int8_t* from) { return _mm512_loadu_si512(from); }
  static WideInt broadcast_quad(const std::uint8_t* from) {
    std::int32_t quad;
    __builtin_memcpy(&quad, from, sizeof quad);
    return _mm512_set1_epi32(quad);
  }
  static WideInt dot_quads(WideInt sum, WideInt a, WideInt b) { return _mm512_dpbusd_epi32(sum, a, b); }
};

}  // namespace
}  // namespace rgalign::engine
