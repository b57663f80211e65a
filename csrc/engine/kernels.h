// What a decoder's forward pass is made of, once per instruction set: matrix products with their epilogues, norm,
// quantisation, rotary embedding and attention. Every set gives the same bits, and a row's bits do not depend on what
// is computed beside it: each output is one chain of additions in the order of the inner dimension.
#pragma once

#include <cstdint>

namespace rgalign::engine {

constexpr int kPanel = 16;          // columns of a matrix that lie side by side
constexpr int kTileRows = 6;        // rows of codes multiplied together
constexpr int kAttentionRows = 12;  // the most rows that attend together
constexpr int kCodeRows = 16;       // the most rows whose codes lie in one tile
constexpr int kCodeStep = 64;       // the most codes of a row or a column that are read together
constexpr int kByteOffset = 128;    // an activation's code in a byte is that much more
constexpr int kHalf = 8;            // a gate-up panel holds 8 columns of the gate, then the same 8 of up
constexpr int kMostLevels = 2047;   // of an activation: 12 bits

// What becomes of a product v, after scales and bias.
enum class Epilogue {
  kStore,   // out = v
  kAdd,     // out += v: the residual stream
  kSwiglu,  // out = gate / (1 + exp(-gate)) * up; half as many columns
};

// A weight [out, in] in panels of 16 output channels: fp32 [panel][in][16], or int8 [panel][in / group][16][group],
// with Kernels::group, padded with zeros to whole panels and groups; kCodeStep rows of any codes may be read behind the
// last.
struct Panels {
  const float* fp32;
  const std::int8_t* int8;
  const float* scales;          // [panels * 16] of the int8 codes
  const std::int32_t* offsets;  // [panels * 16] of the int8 codes: minus kByteOffset times a channel's sum of codes
  const float* bias;            // [panels * 16] or null
  std::int64_t in;              // padded
};

struct Product {
  Panels weight;
  std::int64_t first_panel, last_panel;  // which of them
  std::int64_t num_rows;
  const float* rows;          // fp32: [num_rows][row_stride]
  const std::int16_t* codes;  // int8: of rows 0 to num_rows, as Kernels::quantize has laid them out
  int levels;
  const float* row_scales;  // int8: [num_rows]
  std::int64_t row_stride;
  Epilogue epilogue;
  float* out;  // of column 0 of first_panel
  std::int64_t out_stride;
};

// Consecutive positions of the key-value store.
struct Run {
  std::int32_t begin, end;
};

// One key-value head, for rows that share all keys but their own last ones. Keys are [position / 16][head_dim][16],
// values [position][value_stride].
struct Attention {
  const float* keys;
  const float* values;
  std::int64_t value_stride;
  std::int64_t head_dim;
  float scale;
  const Run* runs;  // in sequence order; the last one is the rows' own
  std::int64_t num_runs;
  std::int64_t num_keys;  // in all runs
  std::int64_t num_rows;  // at most Kernels::attention_rows
  const float* queries[kAttentionRows];
  std::int64_t visible[kAttentionRows];  // keys that a row sees, of num_keys
  float* out[kAttentionRows];            // [head_dim] each
  float* scores;                         // scratch [num_rows][score_stride]
  std::int64_t score_stride;             // at least num_keys + kPanel
};

struct Kernels {
  const char* name;
  int group;  // codes of one column that lie together in an int8 panel
  int attention_rows;
  int chunk_rows;  // that one thread takes through a layer: in its cache while the weights stream past
  void (*matmul_fp32)(const Product& product);
  // (float(sum of code products) * row scale) * channel scale; the sum is exact.
  void (*matmul_int8)(const Product& product);
  // out = weight * in / sqrt(mean(in^2) + eps); n is a multiple of 8. `out` may be `in`.
  void (*rms_norm)(const float* in, const float* weight, std::int64_t n, float eps, float* out);
  // codes = round(in * levels / max|in|), ties to even; returns max|in| / levels. n is a multiple of 8, levels at most
  // kMostLevels. `codes` holds rows side by side in tiles, in an order that only this set's matmul_int8 knows; it has
  // room for num_codes(rows, n).
  float (*quantize)(const float* in, std::int64_t n, int levels, std::int64_t row, std::int16_t* codes);
  // Rotates the pairs (i, i + half) of one head; half is a multiple of 8.
  void (*rotate)(float* head, const float* cosines, const float* sines, std::int64_t half);
  void (*attend)(const Attention& task);
  // For tests of its stated error: exp of 8 numbers, relative error below 2e-7 within [-87, 88].
  void (*exp8)(const float* in, float* out);
};

// Of a buffer for the codes of `rows` rows of n.
constexpr std::int64_t num_codes(std::int64_t rows, std::int64_t n) {
  return (rows + kCodeRows - 1) * ((n + kCodeStep - 1) / kCodeStep * kCodeStep);
}

enum class InstructionSet { kPortable, kAvx2, kAvx512, kAmx };

// Null where this build or this CPU does not have the set.
const Kernels* kernels_of(InstructionSet set);
const Kernels& best_kernels();

namespace detail {
extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
// What is different on tiles; the rest is avx512_kernels'.
void matmul_int8_amx(const Product& product);
float quantize_amx(const float* in, std::int64_t n, int levels, std::int64_t row, std::int16_t* codes);
#endif
}  // namespace detail

}  // namespace rgalign::engine
