#include "engine/model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace rgalign::engine {
namespace {

// So large that no product of two of them overflows, far beyond any model.
constexpr std::int64_t kLargest = std::int64_t{1} << 24;
constexpr std::int64_t kLargestCode = 127;  // of a weight

void require(bool condition, const char* name, const std::string& required, const std::string& received) {
  if (!condition) throw std::invalid_argument(std::string(name) + ": required " + required + "; received " + received);
}

void require_size(const char* name, std::int64_t size, std::int64_t multiple) {
  const std::string required = "a multiple of " + std::to_string(multiple) + " up to " + std::to_string(kLargest);
  require(size > 0 && size <= kLargest && size % multiple == 0, name, required, std::to_string(size));
}

}  // namespace

void ModelShape::check() const {
  require_size("num_layers", num_layers, 1);
  require_size("hidden", hidden, kPanel);
  require_size("intermediate", intermediate, kPanel);
  require_size("head_dim", head_dim, kPanel);
  require_size("num_kv_heads", num_kv_heads, 1);
  require_size("num_heads", num_heads, num_kv_heads);
  require_size("vocabulary", vocabulary, 1);
  require(std::isfinite(eps) && eps > 0, "eps", "above 0", std::to_string(eps));
  require(std::isfinite(rope_scale) && rope_scale > 0, "rope_scale", "above 0", std::to_string(rope_scale));
  const std::int64_t widest = std::max({hidden, intermediate, query_width()});
  const bool fit = activation_levels <= kMostLevels && activation_levels <= INT32_MAX / (kLargestCode * widest);
  require(activation_levels >= 0 && fit, "activation_levels", "codes of 12 bits whose sums have 32 bits",
          std::to_string(activation_levels));
}

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
                                std::int64_t in, int group) {
  PackedMatrix packed(bias, out, in);
  packed.scales_.assign(scales, scales + out);
  packed.int8_.resize(static_cast<std::size_t>(out * in + kCodeStep * kPanel));
  packed.offsets_.resize(static_cast<std::size_t>(out));
  for (std::int64_t row = 0; row < out; ++row) {
    std::int8_t* panel = packed.int8_.data() + row / kPanel * kPanel * in + row % kPanel * group;
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < in; ++k) {
      panel[k / group * group * kPanel + k % group] = codes[row * in + k];
      sum += codes[row * in + k];
    }
    packed.offsets_[static_cast<std::size_t>(row)] = -kByteOffset * sum;
  }
  return packed;
}

Panels PackedMatrix::panels() const {
  return {fp32_.empty() ? nullptr : fp32_.data(),     int8_.empty() ? nullptr : int8_.data(),
          scales_.empty() ? nullptr : scales_.data(), offsets_.empty() ? nullptr : offsets_.data(),
          bias_.empty() ? nullptr : bias_.data(),     in_};
}

std::int64_t PackedMatrix::num_bytes() const {
  return static_cast<std::int64_t>(int8_.size() + 4 * (fp32_.size() + scales_.size() + offsets_.size() + bias_.size()));
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
