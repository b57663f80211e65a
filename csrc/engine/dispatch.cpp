#include "engine/kernels.h"

namespace rgalign::engine {

const Kernels* kernels_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kPortable:
      return &detail::portable_kernels;
#if defined(__x86_64__)
    // GCC's and clang's tests look at what the operating system saves (XGETBV), not only at what the CPU can do.
    case InstructionSet::kAvx2:
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &detail::avx2_kernels;
      return nullptr;
    case InstructionSet::kAvx512:
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
        return &detail::avx512_kernels;
      }
      return nullptr;
#endif
    default:
      return nullptr;
  }
}

const Kernels& best_kernels() {
  if (const Kernels* kernels = kernels_of(InstructionSet::kAvx512)) return *kernels;
  if (const Kernels* kernels = kernels_of(InstructionSet::kAvx2)) return *kernels;
  return *kernels_of(InstructionSet::kPortable);
}

}  // namespace rgalign::engine
