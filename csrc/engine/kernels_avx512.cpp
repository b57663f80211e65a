// AVX-512 with VNNI: 16 lanes in matrix products, one panel a register. vpdpbusd adds four products of an unsigned with
// a signed byte to 32 bits, exactly: activations of 8 bits are shifted by 128, which the sums begin without. vpdpwssd
// adds two products of 16-bit codes, for activations of more bits, at half the rate.
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

#include "engine/kernels_impl.h"
#include "engine/lanes_avx512.h"

namespace rgalign::engine {

const Kernels detail::avx512_kernels = kernels<Avx512>("avx512");

}  // namespace rgalign::engine

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // defined(__x86_64__)
