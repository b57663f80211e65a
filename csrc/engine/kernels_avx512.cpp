// AVX-512 with VNNI: 16 lanes in matrix products, one panel a register. vpdpbusd adds four products of an unsigned with
// a signed byte to 32 bits, exactly: activations of 8 bits are shifted by 128, which the sums begin without. vpdpwssd
// adds two products of 16-bit codes, for activations of more bits, at half the rate.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#include "engine/eight_avx2.h"
#include "engine/kernels_impl.h"

namespace rgalign::engine {
namespace {

struct Avx512 : EightAvx2 {
  static constexpr int kWide = 16;
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
  // Masked with all ones: GCC 12's header warns of its own unmasked form (uninitialised pass-through operand).
  static WideInt widen(const std::int8_t* from) {
    return _mm512_maskz_cvtepi8_epi16(0xFFFFFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void dot_pairs(WideInt* sums, const std::int16_t* a, const WideInt* b) {
    std::int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    sums[0] = _mm512_dpwssd_epi32(sums[0], _mm512_set1_epi32(pair), b[0]);
  }
  static WideInt load_int(const std::int32_t* from) { return _mm512_loadu_si512(from); }
  // Two consecutive pairs of a panel's 16 columns as four codes a column.
  static WideInt load_quads(const std::int8_t* from) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_maskz_permutexvar_epi16(0xFFFFFFFF, order, _mm512_loadu_si512(from));
  }
  static WideInt broadcast_quad(const std::uint8_t* from) {
    std::int32_t quad;
    std::memcpy(&quad, from, sizeof quad);
    return _mm512_set1_epi32(quad);
  }
  static WideInt dot_quads(WideInt sum, WideInt a, WideInt b) { return _mm512_dpbusd_epi32(sum, a, b); }
  static Wide to_float(WideInt from) { return _mm512_maskz_cvtepi32_ps(0xFFFF, from); }
};

}  // namespace

const Kernels detail::avx512_kernels = kernels<Avx512>("avx512");

}  // namespace rgalign::engine

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // defined(__x86_64__)
