// The loops of kernels.h over a type `Lanes` that names one instruction set's registers: `Wide` for matrix products,
// eight lanes (`Eight`) for all that adds up within a row, so that its order is the same everywhere, and the type
// `Many` for what does not, in place of `Lanes` and with as many lanes as the set has. Included by one .cpp per set,
// after its `#pragma GCC target`; unnamed namespace and no standard library, so that no set's code can be linked into
// another's.
#pragma once

#include "engine/attention_impl.h"
#include "engine/products_impl.h"

namespace rgalign::engine {
namespace {

template <class Lanes>
constexpr Kernels kernels(const char* name) {
  return {name,
          Lanes::kGroup,
          Lanes::kFloatRows,
          kBlockRows,
          &matmul_fp32<Lanes>,
          &matmul_int8<Lanes>,
          &rms_norm<Lanes>,
          &quantize<Lanes>,
          &rotate<Lanes>,
          &attend<Lanes>,
          &exp8<Lanes>};
}

}  // namespace
}  // namespace rgalign::engine
