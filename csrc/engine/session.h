// One caller's forward passes over a shared Model: keys and values of a constant prefix and of the previous pack, and
// the scratch memory, which grows to the largest pack seen and is then never allocated again.
#pragma once

#include <cstdint>
#include <vector>

#include "base/large_array.h"
#include "engine/kernels.h"
#include "engine/model.h"

namespace rgalign::engine {

// New tokens that share their ancestors: after the prefix, nodes of `runs` (in order; numbered given nodes first, then
// new tokens), then the segment's own tokens up to each one's place.
struct Segment {
  std::int32_t begin, end;  // of the new tokens
  std::int32_t first_run, last_run;
};

// A prefix tree (rgalign/reasoner/prefix_tree.py), or plain packed prompts: one segment each, without runs.
struct Pack {
  std::int64_t num_new;
  const std::int32_t* token_ids;  // [num_new]
  const std::int32_t* depths;     // [num_new] position below the prefix
  std::int64_t num_given;
  const std::int32_t* given;  // nodes of the previous pack that come first, ascending
  std::int64_t num_segments;
  const Segment* segments;  // cover the new tokens in order
  const Run* runs;
  std::int64_t num_last;
  const std::int32_t* last;  // new tokens whose state is wanted
  float* out;                // [num_last][hidden]
};

class Session {
 public:
  Session(const Model& model, std::int64_t num_threads);

  // Keys and values of tokens before every prompt; forgets the previous pack. Without tokens: no prefix.
  void set_prefix(const std::int32_t* token_ids, std::int64_t count);
  void forward(const Pack& pack);

  std::int64_t prefix_length() const { return prefix_; }
  std::int64_t num_bytes() const;

 private:
  // Scratch of one thread.
  struct Seat {
    LargeArray<float> normed, attended, gated;  // [chunk_rows][..]
    LargeArray<float> scores;                   // [attention_rows][score_stride]
    LargeArray<std::int16_t> codes;
    std::vector<float> row_scales;
    std::vector<Run> runs;
  };
  // Tokens computed together: consecutive new ones, or the wanted ones.
  struct Rows {
    const std::int32_t* tokens;  // [count]
    std::int64_t count;
    float* hidden;  // [count][hidden]
    float* qkv;     // [count][qkv_stride]
  };

  void reserve(const Pack& pack);
  void reserve_positions(std::int64_t positions);
  void keep(const std::int32_t* given, std::int64_t count);
  void run(const Pack& pack);
  template <class Body>
  void in_chunks(std::int64_t count, const Body& body);

  void embed(const Pack& pack, const Rows& rows) const;
  void project_qkv(std::int64_t layer, const Pack& pack, const Rows& rows, bool queries, bool keys, Seat& seat);
  void rotate(std::int64_t first_head, std::int64_t last_head, const std::vector<float>& norm, std::int64_t position,
              float* qkv) const;
  void store(std::int64_t layer, std::int64_t position, const float* qkv);
  void attend(std::int64_t layer, const Pack& pack, const Rows& rows, Seat& seat);
  std::int64_t list_runs(const Pack& pack, const Segment& segment, Seat& seat) const;  // keys above the segment
  void finish_layer(std::int64_t layer, const Rows& rows, Seat& seat);
  void multiply(const PackedMatrix& weight, const float* in, std::int64_t in_stride, std::int64_t num_rows,
                Epilogue epilogue, float* out, std::int64_t out_stride, Seat& seat) const;
  void multiply(const PackedMatrix& weight, std::int64_t first_panel, std::int64_t last_panel, const float* in,
                std::int64_t in_stride, std::int64_t num_rows, Epilogue epilogue, float* out, std::int64_t out_stride,
                Seat& seat) const;
  float* keys_of(std::int64_t layer, std::int64_t head);
  float* values_of(std::int64_t layer) { return values_.data() + layer * capacity_ * model_.shape.kv_width(); }

  const Model& model_;
  const Kernels& kernels_;
  const std::int64_t num_threads_;
  const std::int64_t qkv_stride_;
  std::int64_t prefix_ = 0;
  std::int64_t base_ = 0;                     // position of the first new token: behind prefix and given nodes
  std::int64_t capacity_ = 0;                 // positions of the store
  LargeArray<float> keys_, values_;           // [layer][head][capacity / 16][head_dim][16]; [layer][capacity][kv_width]
  LargeArray<float> cosines_, sines_;         // [capacity][head_dim / 2]
  LargeArray<float> hidden_, qkv_;            // of the new tokens
  LargeArray<float> last_hidden_, last_qkv_;  // of the wanted ones, in the last layer
  std::vector<std::int32_t> tokens_;          // 0, 1, ...
  std::vector<std::int32_t> segment_of_;      // [new]
  std::vector<Seat> seats_;
};

}  // namespace rgalign::engine
