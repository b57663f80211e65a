// A Llama-family decoder on a CPU: token ids to the state after the final norm at chosen tokens.
//
//   x = embed[token]
//   per layer:  q, k, v = W_qkv norm(x) + b;  q, k = rope(qk_norm(q, k))
//               x += W_o softmax(q k^T / sqrt(head_dim)) v
//               x += W_down (silu(W_gate norm(x)) * W_up norm(x))
//   out = norm(x[last])
//
// Model holds the weights, in one instruction set's panels, and is shared; Session holds keys, values and scratch, and
// serves one caller at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/large_array.h"
#include "engine/kernels.h"

namespace rgalign::engine {

struct ModelShape {
  std::int64_t num_layers, hidden, intermediate, num_heads, num_kv_heads, head_dim;
  float eps;
  float rope_scale;       // factor of cosines and sines (YaRN); 1 otherwise
  bool qk_norm;           // RMSNorm of each query and key head before the rotation
  int activation_levels;  // 0: fp32; else codes in [-levels, levels]
  std::int64_t vocabulary;

  std::int64_t query_width() const { return num_heads * head_dim; }
  std::int64_t kv_width() const { return num_kv_heads * head_dim; }
  // What the kernels take for granted. Throws std::invalid_argument that names the size.
  void check() const;
};

// A weight in panels; made once from rows.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // weight [out][in], bias [out] or null. out a multiple of 16, in of 8. `group`: Kernels::group.
  static PackedMatrix fp32(const float* weight, const float* bias, std::int64_t out, std::int64_t in);
  static PackedMatrix int8(const std::int8_t* codes, const float* scales, const float* bias, std::int64_t out,
                           std::int64_t in, int group);
  Panels panels() const;
  std::int64_t num_panels() const { return out_ / kPanel; }
  std::int64_t num_bytes() const;

 private:
  PackedMatrix(const float* bias, std::int64_t out, std::int64_t in);
  std::int64_t out_ = 0, in_ = 0;
  LargeArray<float> fp32_;
  LargeArray<std::int8_t> int8_;
  LargeArray<float> scales_, bias_;
  LargeArray<std::int32_t> offsets_;
};

struct Layer {
  std::vector<float> input_norm, post_norm, query_norm, key_norm;  // the last two with qk_norm only
  PackedMatrix qkv;                                                // rows: queries, keys, values
  PackedMatrix out;                                                //
  PackedMatrix gate_up;                                            // rows: 8 of gate, 8 of up, in turn
  PackedMatrix down;
};

struct Model {
  ModelShape shape;
  const Kernels* kernels;                // that the weights are packed for
  LargeArray<std::uint16_t> embed_bf16;  // [vocabulary][hidden], or
  LargeArray<float> embed_fp32;
  std::vector<Layer> layers;
  std::vector<float> final_norm;
  std::vector<float> inverse_frequencies;  // [head_dim / 2]

  std::int64_t num_bytes() const;
};

}  // namespace rgalign::engine
