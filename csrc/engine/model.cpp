#include "engine/model.h"

#include <algorithm>

namespace rgalign::engine {

PackedMatrix::PackedMatrix(const float* bias, std::int64_t out, std::int64_t in) : out_(out), in_(in) {
  if (bias != nullptr) bias_.assign(bias, bias + out);
}

PackedMatrix PackedMatrix::fp32(const float* weight, const float* bias, std::int64_t out, std::int64_t in) {
  PackedMatrix packed(bias, out, in);
  packed.fp32_.resize(static_cast<std::size_t>(out * in));
  for (std::int64_t row = 0; row < out; ++row) {
    float* panel = packed.fp32_.data() + row / kPanel * kPanel * in + row % kPanel;
    for (std::int64_t k = 0; k < in; ++k) panel[k * kPanel] = weight[row * in + k];
  }
  return packed;
}

PackedMatrix PackedMatrix::int8(const std::int8_t* codes, const float* scales, const float* bias, std::int64_t out,
                                std::int64_t in) {
  PackedMatrix packed(bias, out, in);
  packed.scales_.assign(scales, scales + out);
  packed.int8_.resize(static_cast<std::size_t>(out * in));
  for (std::int64_t row = 0; row < out; ++row) {
    std::int8_t* panel = packed.int8_.data() + row / kPanel * kPanel * in + row % kPanel * 2;
    for (std::int64_t k = 0; k < in; ++k) panel[k / 2 * 2 * kPanel + k % 2] = codes[row * in + k];
  }
  return packed;
}

Panels PackedMatrix::panels() const {
  return {fp32_.empty() ? nullptr : fp32_.data(), int8_.empty() ? nullptr : int8_.data(),
          scales_.empty() ? nullptr : scales_.data(), bias_.empty() ? nullptr : bias_.data(), in_};
}

std::int64_t PackedMatrix::num_bytes() const {
  return static_cast<std::int64_t>(int8_.size() + 4 * (fp32_.size() + scales_.size() + bias_.size()));
}

std::int64_t Model::num_bytes() const {
  std::int64_t bytes = static_cast<std::int64_t>(2 * embed_bf16.size() + 4 * embed_fp32.size());
  for (const Layer& layer : layers) {
    for (const PackedMatrix* matrix : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      bytes += matrix->num_bytes();
    }
  }
  return bytes;
}

}  // namespace rgalign::engine
