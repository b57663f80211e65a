#include "engine/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/float_environment.h"
#include "base/thread_pool.h"

namespace rgalign::engine {
namespace {

template <class Array>
void grow(Array& array, std::int64_t size) {
  if (static_cast<std::int64_t>(array.size()) < size) array.resize(static_cast<std::size_t>(size));
}

template <class Array>
std::int64_t bytes_of(const Array& array) {
  return static_cast<std::int64_t>(array.capacity() * sizeof(typename Array::value_type));
}

float from_bf16(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace

// Rows of 4,096 bytes, or nearly, would all lie in the same few sets of the cache.
Session::Session(const Model& model, std::int64_t num_threads)
    : model_(model),
      kernels_(*model.kernels),
      num_threads_(num_threads),
      qkv_stride_(model.shape.query_width() + 2 * model.shape.kv_width() + kPanel),
      seats_(static_cast<std::size_t>(num_threads)) {}

void Session::set_prefix(const std::int32_t* token_ids, std::int64_t count) {
  prefix_ = base_ = 0;
  if (count == 0) return;
  std::vector<std::int32_t> depths(static_cast<std::size_t>(count));
  std::iota(depths.begin(), depths.end(), 0);
  const Segment whole{0, static_cast<std::int32_t>(count), 0, 0};
  run({count, token_ids, depths.data(), 0, nullptr, 1, &whole, nullptr, 0, nullptr, nullptr});
  prefix_ = base_ = count;
}

void Session::forward(const Pack& pack) {
  keep(pack.given, pack.num_given);
  run(pack);
}

void Session::run(const Pack& pack) {
  reserve(pack);
  for (std::int64_t s = 0; s < pack.num_segments; ++s) {
    const Segment& segment = pack.segments[s];
    std::fill(segment_of_.begin() + segment.begin, segment_of_.begin() + segment.end, static_cast<std::int32_t>(s));
  }
  const std::int64_t last_layer = model_.shape.num_layers - 1;
  // One meeting of the threads a layer: a token needs the keys and values of others, of this layer, and nothing else.
  for (std::int64_t layer = 0; layer <= last_layer; ++layer) {
    in_chunks(pack.num_new, [&](std::int64_t first, std::int64_t count, Seat& seat) {
      const Rows rows{tokens_.data() + first, count, hidden_.data() + first * model_.shape.hidden,
                      qkv_.data() + first * qkv_stride_};
      if (layer == 0) {
        embed(pack, rows);
      } else {
        attend(layer - 1, pack, rows, seat);
        finish_layer(layer - 1, rows, seat);
      }
      project_qkv(layer, pack, rows, layer < last_layer, true, seat);
    });
  }
  in_chunks(pack.num_last, [&](std::int64_t first, std::int64_t count, Seat& seat) {
    const std::int64_t hidden = model_.shape.hidden;
    const Rows rows{pack.last + first, count, last_hidden_.data() + first * hidden,
                    last_qkv_.data() + first * qkv_stride_};
    for (std::int64_t row = 0; row < count; ++row) {
      const float* from = hidden_.data() + rows.tokens[row] * hidden;
      std::copy(from, from + hidden, rows.hidden + row * hidden);
    }
    project_qkv(last_layer, pack, rows, true, false, seat);
    attend(last_layer, pack, rows, seat);
    finish_layer(last_layer, rows, seat);
    for (std::int64_t row = 0; row < count; ++row) {
      kernels_.rms_norm(rows.hidden + row * hidden, model_.final_norm.data(), hidden, model_.shape.eps,
                        pack.out + (first + row) * hidden);
    }
  });
}

template <class Body>
void Session::in_chunks(std::int64_t count, const Body& body) {
  if (count == 0) return;
  const std::int64_t share = (count + num_threads_ - 1) / num_threads_;
  const std::int64_t chunks = (share + kernels_.chunk_rows - 1) / kernels_.chunk_rows;  // of each thread
  const std::int64_t size = (share + chunks - 1) / chunks;
  shared_pool().run((count + size - 1) / size, num_threads_, [&](std::int64_t chunk, std::int64_t seat) {
    const DefaultFloatEnvironment environment;
    const std::int64_t first = chunk * size;
    body(first, std::min(size, count - first), seats_[static_cast<std::size_t>(seat)]);
  });
}

// ---- memory ---------------------------------------------------------------------------------------------------------

void Session::reserve(const Pack& pack) {
  const ModelShape& shape = model_.shape;
  reserve_positions(base_ + pack.num_new);
  grow(hidden_, pack.num_new * shape.hidden);
  grow(qkv_, pack.num_new * qkv_stride_);
  grow(last_hidden_, pack.num_last * shape.hidden);
  grow(last_qkv_, pack.num_last * qkv_stride_);
  grow(segment_of_, pack.num_new);
  const std::int64_t known = static_cast<std::int64_t>(tokens_.size());
  grow(tokens_, pack.num_new);
  if (known < pack.num_new) std::iota(tokens_.begin() + known, tokens_.end(), static_cast<std::int32_t>(known));
  const std::int64_t widest = std::max({shape.hidden, shape.query_width(), shape.intermediate});
  const std::int64_t rows = kernels_.chunk_rows;
  for (Seat& seat : seats_) {
    grow(seat.normed, rows * shape.hidden);
    grow(seat.attended, rows * shape.query_width());
    grow(seat.gated, rows * shape.intermediate);
    grow(seat.scores, kernels_.attention_rows * (capacity_ + kPanel + kHalf));
    grow(seat.codes, shape.activation_levels > 0 ? num_codes(rows, widest) : 0);
    grow(seat.row_scales, rows);
    seat.runs.reserve(static_cast<std::size_t>(capacity_ + 2));
  }
}

void Session::reserve_positions(std::int64_t positions) {
  if (positions <= capacity_) return;
  const ModelShape& shape = model_.shape;
  const std::int64_t capacity = (std::max(positions, capacity_ + capacity_ / 2) + kPanel - 1) / kPanel * kPanel;
  LargeArray<float> keys(static_cast<std::size_t>(shape.num_layers * shape.kv_width() * capacity));
  LargeArray<float> values(keys.size());
  for (std::int64_t block = 0; block < shape.num_layers * shape.num_kv_heads; ++block) {
    const float* from = keys_.data() + block * capacity_ * shape.head_dim;
    std::copy(from, from + capacity_ * shape.head_dim, keys.data() + block * capacity * shape.head_dim);
  }
  for (std::int64_t layer = 0; layer < shape.num_layers; ++layer) {
    const float* from = values_.data() + layer * capacity_ * shape.kv_width();
    std::copy(from, from + capacity_ * shape.kv_width(), values.data() + layer * capacity * shape.kv_width());
  }
  keys_.swap(keys);
  values_.swap(values);

  const std::int64_t half = shape.head_dim / 2;
  grow(cosines_, capacity * half);
  grow(sines_, capacity * half);
  for (std::int64_t position = capacity_; position < capacity; ++position) {
    for (std::int64_t i = 0; i < half; ++i) {
      const float frequency = model_.inverse_frequencies[static_cast<std::size_t>(i)];
      const double angle = static_cast<float>(position) * frequency;  // rounded to float, as transformers does
      cosines_[static_cast<std::size_t>(position * half + i)] = static_cast<float>(std::cos(angle)) * shape.rope_scale;
      sines_[static_cast<std::size_t>(position * half + i)] = static_cast<float>(std::sin(angle)) * shape.rope_scale;
    }
  }
  capacity_ = capacity;
}

// The given nodes move to the front, each to a lower place or its own, so none is overwritten before it has moved.
void Session::keep(const std::int32_t* given, std::int64_t count) {
  const ModelShape& shape = model_.shape;
  base_ = prefix_ + count;
  std::int64_t still = 0;
  while (still < count && given[still] == still) ++still;
  for (std::int64_t layer = 0; layer < shape.num_layers; ++layer) {
    for (std::int64_t node = still; node < count; ++node) {
      const std::int64_t to = prefix_ + node;
      const std::int64_t from = prefix_ + given[node];
      for (std::int64_t head = 0; head < shape.num_kv_heads; ++head) {
        float* keys = keys_of(layer, head);
        float* target = keys + to / kPanel * shape.head_dim * kPanel + to % kPanel;
        const float* source = keys + from / kPanel * shape.head_dim * kPanel + from % kPanel;
        for (std::int64_t d = 0; d < shape.head_dim; ++d) target[d * kPanel] = source[d * kPanel];
      }
      float* values = values_of(layer);
      const float* source = values + from * shape.kv_width();
      std::copy(source, source + shape.kv_width(), values + to * shape.kv_width());
    }
  }
}

float* Session::keys_of(std::int64_t layer, std::int64_t head) {
  return keys_.data() + (layer * model_.shape.num_kv_heads + head) * capacity_ * model_.shape.head_dim;
}

std::int64_t Session::num_bytes() const {
  std::int64_t bytes = bytes_of(keys_) + bytes_of(values_) + bytes_of(cosines_) + bytes_of(sines_) + bytes_of(hidden_) +
                       bytes_of(qkv_) + bytes_of(last_hidden_) + bytes_of(last_qkv_);
  for (const Seat& seat : seats_) {
    bytes += bytes_of(seat.normed) + bytes_of(seat.attended) + bytes_of(seat.gated) + bytes_of(seat.scores) +
             bytes_of(seat.codes);
  }
  return bytes;
}

// ---- a layer --------------------------------------------------------------------------------------------------------

void Session::embed(const Pack& pack, const Rows& rows) const {
  const std::int64_t hidden = model_.shape.hidden;
  for (std::int64_t row = 0; row < rows.count; ++row) {
    const std::int64_t at = pack.token_ids[rows.tokens[row]] * hidden;
    float* out = rows.hidden + row * hidden;
    if (!model_.embed_fp32.empty()) {
      std::copy_n(model_.embed_fp32.data() + at, hidden, out);
    } else {
      std::transform(model_.embed_bf16.data() + at, model_.embed_bf16.data() + at + hidden, out, from_bf16);
    }
  }
}

void Session::project_qkv(std::int64_t layer, const Pack& pack, const Rows& rows, bool queries, bool keys, Seat& seat) {
  const ModelShape& shape = model_.shape;
  const Layer& weights = model_.layers[static_cast<std::size_t>(layer)];
  for (std::int64_t row = 0; row < rows.count; ++row) {
    kernels_.rms_norm(rows.hidden + row * shape.hidden, weights.input_norm.data(), shape.hidden, shape.eps,
                      seat.normed.data() + row * shape.hidden);
  }
  const std::int64_t first = queries ? 0 : shape.query_width();
  const std::int64_t last = shape.query_width() + (keys ? 2 * shape.kv_width() : 0);
  multiply(weights.qkv, first / kPanel, last / kPanel, seat.normed.data(), shape.hidden, rows.count, Epilogue::kStore,
           rows.qkv + first, qkv_stride_, seat);
  for (std::int64_t row = 0; row < rows.count; ++row) {
    float* qkv = rows.qkv + row * qkv_stride_;
    const std::int32_t token = rows.tokens[row];
    const std::int64_t position = prefix_ + pack.depths[token];
    if (queries) rotate(0, shape.num_heads, weights.query_norm, position, qkv);
    if (!keys) continue;
    rotate(shape.num_heads, shape.num_heads + shape.num_kv_heads, weights.key_norm, position, qkv);
    store(layer, base_ + token, qkv);
  }
}

void Session::rotate(std::int64_t first_head, std::int64_t last_head, const std::vector<float>& norm,
                     std::int64_t position, float* qkv) const {
  const std::int64_t head_dim = model_.shape.head_dim;
  const std::int64_t half = head_dim / 2;
  for (std::int64_t head = first_head; head < last_head; ++head) {
    float* values = qkv + head * head_dim;
    if (model_.shape.qk_norm) kernels_.rms_norm(values, norm.data(), head_dim, model_.shape.eps, values);
    kernels_.rotate(values, cosines_.data() + position * half, sines_.data() + position * half, half);
  }
}

void Session::store(std::int64_t layer, std::int64_t position, const float* qkv) {
  const ModelShape& shape = model_.shape;
  const float* key = qkv + shape.query_width();
  for (std::int64_t head = 0; head < shape.num_kv_heads; ++head) {
    float* panel = keys_of(layer, head) + position / kPanel * shape.head_dim * kPanel + position % kPanel;
    for (std::int64_t d = 0; d < shape.head_dim; ++d) panel[d * kPanel] = *key++;
  }
  std::copy(key, key + shape.kv_width(), values_of(layer) + position * shape.kv_width());
}

// Rows (token, query head) that share a key-value head go through attention several at a time.
void Session::attend(std::int64_t layer, const Pack& pack, const Rows& rows, Seat& seat) {
  const ModelShape& shape = model_.shape;
  const std::int64_t group = shape.num_heads / shape.num_kv_heads;
  Attention task{};
  task.values = nullptr;
  task.value_stride = shape.kv_width();
  task.head_dim = shape.head_dim;
  task.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  task.scores = seat.scores.data();
  task.score_stride = static_cast<std::int64_t>(seat.scores.size()) / kernels_.attention_rows;
  for (std::int64_t first = 0; first < rows.count;) {
    const Segment& segment = pack.segments[segment_of_[static_cast<std::size_t>(rows.tokens[first])]];
    std::int64_t end = first + 1;
    while (end < rows.count && rows.tokens[end] >= segment.begin && rows.tokens[end] < segment.end) ++end;
    const std::int64_t above = list_runs(pack, segment, seat);
    Run& own = seat.runs.back();
    task.runs = seat.runs.data();
    task.num_runs = static_cast<std::int64_t>(seat.runs.size());
    for (std::int64_t head = 0; head < shape.num_kv_heads; ++head) {
      task.keys = keys_of(layer, head);
      task.values = values_of(layer) + head * shape.head_dim;
      for (std::int64_t place = 0; place < (end - first) * group; place += kernels_.attention_rows) {
        task.num_rows = std::min<std::int64_t>(kernels_.attention_rows, (end - first) * group - place);
        task.num_keys = 0;
        for (std::int64_t r = 0; r < task.num_rows; ++r) {
          const std::int64_t row = first + (place + r) / group;
          const std::int64_t column = (head * group + (place + r) % group) * shape.head_dim;
          task.queries[r] = rows.qkv + row * qkv_stride_ + column;
          task.out[r] = seat.attended.data() + row * shape.query_width() + column;
          task.visible[r] = above + rows.tokens[row] - segment.begin + 1;
          task.num_keys = std::max(task.num_keys, task.visible[r]);
        }
        own.end = static_cast<std::int32_t>(base_ + segment.begin + task.num_keys - above);
        kernels_.attend(task);
      }
    }
    first = end;
  }
}

std::int64_t Session::list_runs(const Pack& pack, const Segment& segment, Seat& seat) const {
  std::int64_t above = 0;
  seat.runs.clear();
  const auto append = [&](std::int64_t begin, std::int64_t end) {
    if (!seat.runs.empty() && seat.runs.back().end == begin) {
      seat.runs.back().end = static_cast<std::int32_t>(end);
    } else {
      seat.runs.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
    }
  };
  if (prefix_ > 0) append(0, prefix_);
  for (std::int32_t run = segment.first_run; run < segment.last_run; ++run) {
    append(prefix_ + pack.runs[run].begin, prefix_ + pack.runs[run].end);
  }
  for (const Run& run : seat.runs) above += run.end - run.begin;
  append(base_ + segment.begin, base_ + segment.end);
  return above;
}

void Session::finish_layer(std::int64_t layer, const Rows& rows, Seat& seat) {
  const ModelShape& shape = model_.shape;
  const Layer& weights = model_.layers[static_cast<std::size_t>(layer)];
  multiply(weights.out, seat.attended.data(), shape.query_width(), rows.count, Epilogue::kAdd, rows.hidden,
           shape.hidden, seat);
  for (std::int64_t row = 0; row < rows.count; ++row) {
    kernels_.rms_norm(rows.hidden + row * shape.hidden, weights.post_norm.data(), shape.hidden, shape.eps,
                      seat.normed.data() + row * shape.hidden);
  }
  multiply(weights.gate_up, seat.normed.data(), shape.hidden, rows.count, Epilogue::kSwiglu, seat.gated.data(),
           shape.intermediate, seat);
  multiply(weights.down, seat.gated.data(), shape.intermediate, rows.count, Epilogue::kAdd, rows.hidden, shape.hidden,
           seat);
}

void Session::multiply(const PackedMatrix& weight, const float* in, std::int64_t in_stride, std::int64_t num_rows,
                       Epilogue epilogue, float* out, std::int64_t out_stride, Seat& seat) const {
  multiply(weight, 0, weight.num_panels(), in, in_stride, num_rows, epilogue, out, out_stride, seat);
}

void Session::multiply(const PackedMatrix& weight, std::int64_t first_panel, std::int64_t last_panel, const float* in,
                       std::int64_t in_stride, std::int64_t num_rows, Epilogue epilogue, float* out,
                       std::int64_t out_stride, Seat& seat) const {
  Product product{
      weight.panels(), first_panel, last_panel, num_rows, in,        nullptr, model_.shape.activation_levels,
      nullptr,         in_stride,   epilogue,   out,      out_stride};
  if (product.weight.fp32 != nullptr) return kernels_.matmul_fp32(product);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    seat.row_scales[static_cast<std::size_t>(row)] = kernels_.quantize(
        in + row * in_stride, product.weight.in, model_.shape.activation_levels, row, seat.codes.data());
  }
  product.codes = seat.codes.data();
  product.row_scales = seat.row_scales.data();
  kernels_.matmul_int8(product);
}

}  // namespace rgalign::engine
