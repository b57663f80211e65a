#include <initializer_list>

#include "engine/kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rgalign::engine {
namespace {

#if defined(__x86_64__)
// GCC's and clang's tests look at what the operating system saves (XGETBV), not only at what the CPU can do.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

// Linux saves tiles for a process that has asked for it, once, for all its threads and those it forks; asking fails
// where the kernel or the CPU has none, or a thread's alternative signal stack is too small to hold them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned kTile = 1U << 24, kInt8 = 1U << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTile) == 0 || (d & kInt8) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const Kernels* amx_kernels() {
  static const bool available = has_avx512() && may_use_tiles();
  static const Kernels kernels = [] {
    Kernels made = detail::avx512_kernels;
    made.name = "amx";
    made.chunk_rows = 128;  // fewer passes over weights, which are what products on tiles wait for
    made.matmul_int8 = &detail::matmul_int8_amx;
    made.quantize = &detail::quantize_amx;
    return made;
  }();
  return available ? &kernels : nullptr;
}
#endif

}  // namespace

const Kernels* kernels_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kPortable:
      return &detail::portable_kernels;
#if defined(__x86_64__)
    case InstructionSet::kAvx2:
      return has_avx2() ? &detail::avx2_kernels : nullptr;
    case InstructionSet::kAvx512:
      return has_avx512() ? &detail::avx512_kernels : nullptr;
    case InstructionSet::kAmx:
      return amx_kernels();
#endif
    default:
      return nullptr;
  }
}

const Kernels& best_kernels() {
  for (const InstructionSet set : {InstructionSet::kAmx, InstructionSet::kAvx512, InstructionSet::kAvx2}) {
    if (const Kernels* kernels = kernels_of(set)) return *kernels;
  }
  return *kernels_of(InstructionSet::kPortable);
}

}  // namespace rgalign::engine
