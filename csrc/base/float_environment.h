// Round to nearest, subnormal numbers kept, for the length of a scope: threads of the host process may have been set to
// flush subnormals (torch.set_flush_denormal), and a result must not depend on who computes it.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace rgalign {

class DefaultFloatEnvironment {
 public:
#if defined(__x86_64__)
  DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }
#else
  DefaultFloatEnvironment() { std::feholdexcept(&saved_), std::fesetenv(FE_DFL_ENV); }
  ~DefaultFloatEnvironment() { std::fesetenv(&saved_); }
#endif
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr unsigned kDefault =
      0x1F80;  // all exceptions masked, nearest, neither flush-to-zero nor denormals-are-zero
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

}  // namespace rgalign
