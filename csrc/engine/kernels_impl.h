// The loops of kernels.h over a type `Lanes` that names one instruction set's registers: `Wide` for matrix products,
// eight lanes (`Eight`) for all that adds up within a row, so that its order is the same everywhere, and the type
// `Many` for what does not, in place of `Lanes` and with as many lanes as the set has. Included by one .cpp per set,
// after its `#pragma GCC target`; unnamed namespace and no standard library, so that no set's code can be linked into
// another's.
#include "engine/kernels.h"

namespace rgalign::engine {
namespace {

constexpr std::int64_t kBlock = 288;     // of the inner dimension: a float32 panel that stays in a first-level cache
constexpr std::int64_t kBlockRows = 96;  // whose sums wait for the next block

// What the next panel's tiles will read, a part of it beside each of this panel's tiles of kRows.
template <int kRows = kTileRows>
inline void fetch(const void* next, std::int64_t bytes, std::int64_t row, std::int64_t num_rows) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t lines = bytes / kLine;
  const char* from = static_cast<const char*>(next);
  const std::int64_t end = row + kRows < num_rows ? lines * (row + kRows) / num_rows : lines;
  for (std::int64_t line = lines * row / num_rows; line < end; ++line) __builtin_prefetch(from + line * kLine, 0, 2);
}

// ---- products -------------------------------------------------------------------------------------------------------

// c[r][0 .. P * kPanel) (+)= sum over k of a[r][k] * b[k * b_stride + ..], of P panels that lie panel_stride apart.
template <class Lanes, int P, int R>
inline void tile_fp32(const float* const* a, const float* b, std::int64_t b_stride, std::int64_t panel_stride,
                      std::int64_t inner, float* c, std::int64_t c_stride, bool add) {
  constexpr int kParts = kPanel / Lanes::kWide, V = P * kParts;
  typename Lanes::Wide sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sums[r][v] = add ? Lanes::load_wide(c + r * c_stride + v * Lanes::kWide) : Lanes::zero_wide();
    }
  }
  const float* rows[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) rows[r] = a[r];
  for (std::int64_t k = 0; k < inner; ++k) {
    typename Lanes::Wide columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      columns[v] = Lanes::load_wide(b + v / kParts * panel_stride + v % kParts * Lanes::kWide);
    }
    b += b_stride;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto value = Lanes::broadcast_wide(rows[r] + k);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = Lanes::fma_wide(value, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) Lanes::store_wide(c + r * c_stride + v * Lanes::kWide, sums[r][v]);
  }
}

template <class Lanes, int P, int R = Lanes::kFloatRows>
void tile_fp32_rows(int num_rows, const float* const* a, const float* b, std::int64_t b_stride,
                    std::int64_t panel_stride, std::int64_t inner, float* c, std::int64_t c_stride, bool add) {
  if constexpr (R > 1) {
    if (num_rows < R) {
      return tile_fp32_rows<Lanes, P, R - 1>(num_rows, a, b, b_stride, panel_stride, inner, c, c_stride, add);
    }
  }
  tile_fp32<Lanes, P, R>(a, b, b_stride, panel_stride, inner, c, c_stride, add);
}

// a is [in / kGroup][kTileRows][kGroup].
template <class Lanes, int R>
inline void tile_int8(const std::int16_t* a, const std::int8_t* b, std::int64_t groups, const float* row_scales,
                      const float* scales, float* c) {
  constexpr int V = kPanel / Lanes::kWide;
  constexpr int kSums = V * Lanes::kGroup / 2;  // two products a lane
  typename Lanes::WideInt sums[R][kSums];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kSums; ++v) sums[r][v] = Lanes::zero_int();
  }
  for (std::int64_t k = 0; k < groups; ++k) {
    typename Lanes::WideInt columns[kSums];
#pragma GCC unroll 8
    for (int v = 0; v < kSums; ++v) columns[v] = Lanes::widen(b + v * 2 * Lanes::kWide);
    b += Lanes::kGroup * kPanel;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) Lanes::dot_group(sums[r], a + Lanes::kGroup * r, columns);
    a += Lanes::kGroup * kTileRows;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    typename Lanes::WideInt whole[V];
    Lanes::join(sums[r], whole);
    const auto row_scale = Lanes::broadcast_wide(row_scales + r);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const auto channel = Lanes::load_wide(scales + v * Lanes::kWide);
      const auto product = Lanes::mul_wide(Lanes::mul_wide(Lanes::to_float(whole[v]), row_scale), channel);
      Lanes::store_wide(c + r * kPanel + v * Lanes::kWide, product);
    }
  }
}

// As tile_int8, of bytes and with V panels beside each other: c[v][R][kPanel], b and a of four codes a step.
template <class Lanes, int R, int V>
inline void tile_bytes(const std::uint8_t* a, const std::int8_t* b, std::int64_t b_stride, std::int64_t quads,
                       const std::int32_t* offsets, const float* row_scales, const float* scales, float* c) {
  typename Lanes::WideInt sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = Lanes::load_int(offsets + v * kPanel);
  }
  for (std::int64_t k = 0; k < quads; ++k) {
    typename Lanes::WideInt columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) columns[v] = Lanes::load_quads(b + v * b_stride);
    b += 4 * kPanel;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto codes = Lanes::broadcast_quad(a + 4 * r);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = Lanes::dot_quads(sums[r][v], codes, columns[v]);
    }
    a += 4 * kTileRows;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const auto row_scale = Lanes::broadcast_wide(row_scales + r);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const auto channel = Lanes::load_wide(scales + v * kPanel);
      const auto product = Lanes::mul_wide(Lanes::mul_wide(Lanes::to_float(sums[r][v]), row_scale), channel);
      Lanes::store_wide(c + (v * kTileRows + r) * kPanel, product);
    }
  }
}

// ---- eight lanes ----------------------------------------------------------------------------------------------------

// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by Cephes' polynomial of degree 7.
template <class Lanes>
inline typename Lanes::Eight exp_eight(typename Lanes::Eight x) {
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23: adding it leaves no bits for a fraction
  x = Lanes::min(Lanes::max(x, Lanes::set(-87.3F)), Lanes::set(88.3F));
  const auto shifted = Lanes::fma(x, Lanes::set(1.44269504F), Lanes::set(kShift));
  const auto n = Lanes::sub(shifted, Lanes::set(kShift));
  auto r = Lanes::fma(n, Lanes::set(-0.693359375F), x);
  r = Lanes::fma(n, Lanes::set(2.12194440e-4F), r);
  auto p = Lanes::set(1.9875691500e-4F);
  p = Lanes::fma(p, r, Lanes::set(1.3981999507e-3F));
  p = Lanes::fma(p, r, Lanes::set(8.3334519073e-3F));
  p = Lanes::fma(p, r, Lanes::set(4.1665795894e-2F));
  p = Lanes::fma(p, r, Lanes::set(1.6666665459e-1F));
  p = Lanes::fma(p, r, Lanes::set(5.0000001201e-1F));
  p = Lanes::add(Lanes::fma(p, Lanes::mul(r, r), r), Lanes::set(1.0F));
  return Lanes::scale_by_power(p, shifted);
}

template <class Lanes>
inline typename Lanes::Eight silu(typename Lanes::Eight gate) {
  const auto one = Lanes::set(1.0F);
  return Lanes::div(gate, Lanes::add(one, exp_eight<Lanes>(Lanes::sub(Lanes::set(0.0F), gate))));
}

template <class Lanes>
inline void finish(const Product& product, std::int64_t row, int num_rows, std::int64_t panel, const float* tile) {
  const float* bias = product.weight.bias == nullptr ? nullptr : product.weight.bias + panel * kPanel;
  const std::int64_t place = panel - product.first_panel;
  for (int r = 0; r < num_rows; ++r) {
    auto low = Lanes::load(tile + r * kPanel);
    auto high = Lanes::load(tile + r * kPanel + kHalf);
    if (bias != nullptr) {
      low = Lanes::add(low, Lanes::load(bias));
      high = Lanes::add(high, Lanes::load(bias + kHalf));
    }
    float* out = product.out + (row + r) * product.out_stride;
    if (product.epilogue == Epilogue::kSwiglu) {
      Lanes::store(out + place * kHalf, Lanes::mul(silu<Lanes>(low), high));
      continue;
    }
    out += place * kPanel;
    if (product.epilogue == Epilogue::kAdd) {
      low = Lanes::add(Lanes::load(out), low);
      high = Lanes::add(Lanes::load(out + kHalf), high);
    }
    Lanes::store(out, low);
    Lanes::store(out + kHalf, high);
  }
}

template <class Lanes>
void matmul_fp32(const Product& product) {
  alignas(64) float sums[kBlockRows * kPanel];
  const std::int64_t in = product.weight.in;
  for (std::int64_t panel = product.first_panel; panel < product.last_panel; ++panel) {
    const float* weight = product.weight.fp32 + panel * in * kPanel;
    const bool last = panel + 1 == product.last_panel;
    for (std::int64_t begin = 0; begin < product.num_rows; begin += kBlockRows) {
      const std::int64_t rest = product.num_rows - begin;
      const std::int64_t num_rows = rest < kBlockRows ? rest : kBlockRows;
      for (std::int64_t k = 0; k < in; k += kBlock) {
        const std::int64_t inner = in - k < kBlock ? in - k : kBlock;
        for (std::int64_t row = 0; row < num_rows; row += Lanes::kFloatRows) {
          const std::int64_t left = num_rows - row;
          const int count = left < Lanes::kFloatRows ? static_cast<int>(left) : Lanes::kFloatRows;
          const float* rows[Lanes::kFloatRows];
          for (int r = 0; r < count; ++r) rows[r] = product.rows + (begin + row + r) * product.row_stride + k;
          float* tile = sums + row * kPanel;
          tile_fp32_rows<Lanes, 1>(count, rows, weight + k * kPanel, kPanel, 0, inner, tile, kPanel, k > 0);
          if (k + kBlock >= in) finish<Lanes>(product, begin + row, count, panel, tile);
          if (!last) fetch<Lanes::kFloatRows>(weight + (in + k) * kPanel, inner * kPanel * 4, row, num_rows);
        }
      }
    }
  }
}

template <class Lanes>
inline void tile_int8_rows(int num_rows, const std::int16_t* a, const std::int8_t* b, std::int64_t groups,
                           const float* row_scales, const float* scales, float* c) {
  switch (num_rows) {
    case 1:
      return tile_int8<Lanes, 1>(a, b, groups, row_scales, scales, c);
    case 2:
      return tile_int8<Lanes, 2>(a, b, groups, row_scales, scales, c);
    case 3:
      return tile_int8<Lanes, 3>(a, b, groups, row_scales, scales, c);
    case 4:
      return tile_int8<Lanes, 4>(a, b, groups, row_scales, scales, c);
    case 5:
      return tile_int8<Lanes, 5>(a, b, groups, row_scales, scales, c);
    default:
      return tile_int8<Lanes, 6>(a, b, groups, row_scales, scales, c);
  }
}

template <class Lanes, int V>
inline void tile_bytes_rows(int num_rows, const std::uint8_t* a, const std::int8_t* b, std::int64_t in,
                            const std::int32_t* offsets, const float* row_scales, const float* scales, float* c) {
  switch (num_rows) {
    case 1:
      return tile_bytes<Lanes, 1, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 2:
      return tile_bytes<Lanes, 2, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 3:
      return tile_bytes<Lanes, 3, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 4:
      return tile_bytes<Lanes, 4, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    case 5:
      return tile_bytes<Lanes, 5, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
    default:
      return tile_bytes<Lanes, 6, V>(a, b, in * kPanel, in / 4, offsets, row_scales, scales, c);
  }
}

// V panels beside each other, from `panel` on.
template <class Lanes, int V>
inline void matmul_bytes(const Product& product, std::int64_t panel) {
  alignas(64) float tiles[V * kTileRows * kPanel];
  const std::int64_t in = product.weight.in;
  const std::int8_t* weight = product.weight.int8 + panel * in * kPanel;
  const std::int64_t left = product.last_panel - panel - V;
  for (std::int64_t row = 0; row < product.num_rows; row += kTileRows) {
    const int count = product.num_rows - row < kTileRows ? static_cast<int>(product.num_rows - row) : kTileRows;
    const auto* codes = reinterpret_cast<const std::uint8_t*>(product.codes + row * in);
    tile_bytes_rows<Lanes, V>(count, codes, weight, in, product.weight.offsets + panel * kPanel,
                              product.row_scales + row, product.weight.scales + panel * kPanel, tiles);
    for (int v = 0; v < V; ++v) finish<Lanes>(product, row, count, panel + v, tiles + v * kTileRows * kPanel);
    if (left > 0) fetch(weight + V * in * kPanel, (left < V ? left : V) * in * kPanel, row, product.num_rows);
  }
}

template <class Lanes>
void matmul_int8(const Product& product) {
  if constexpr (Lanes::kByteLevels > 0) {
    if (product.levels <= Lanes::kByteLevels) {
      std::int64_t panel = product.first_panel;
      for (; panel + 2 <= product.last_panel; panel += 2) matmul_bytes<Lanes, 2>(product, panel);
      if (panel < product.last_panel) matmul_bytes<Lanes, 1>(product, panel);
      return;
    }
  }
  alignas(64) float tile[kTileRows * kPanel];
  const std::int64_t in = product.weight.in;
  for (std::int64_t panel = product.first_panel; panel < product.last_panel; ++panel) {
    const std::int8_t* weight = product.weight.int8 + panel * in * kPanel;
    const float* scales = product.weight.scales + panel * kPanel;
    for (std::int64_t row = 0; row < product.num_rows; row += kTileRows) {
      const int count = product.num_rows - row < kTileRows ? static_cast<int>(product.num_rows - row) : kTileRows;
      tile_int8_rows<Lanes>(count, product.codes + row * in, weight, in / Lanes::kGroup, product.row_scales + row,
                            scales, tile);
      finish<Lanes>(product, row, count, panel, tile);
      if (panel + 1 < product.last_panel) fetch(weight + in * kPanel, in * kPanel, row, product.num_rows);
    }
  }
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// body(lanes, i) for all of n, a multiple of 8.
template <class Lanes, class Body>
inline void each(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + Lanes::kMany <= n; i += Lanes::kMany) body(typename Lanes::Many{}, i);
  for (; i < n; i += kHalf) body(Lanes{}, i);
}

template <class Lanes>
void rms_norm(const float* in, const float* weight, std::int64_t n, float eps, float* out) {
  auto squares = Lanes::set(0.0F);
  for (std::int64_t i = 0; i < n; i += kHalf) {
    const auto x = Lanes::load(in + i);
    squares = Lanes::fma(x, x, squares);
  }
  const float mean = Lanes::sum(squares) / static_cast<float>(n);
  const float factor = 1.0F / Lanes::square_root(mean + eps);
  each<Lanes>(n, [=](auto lanes, std::int64_t i) {
    lanes.store(out + i, lanes.mul(lanes.load(weight + i), lanes.mul(lanes.load(in + i), lanes.set(factor))));
  });
}

// A tile of codes: [n / kGroup][kTileRows][kGroup] in 16 bits; or, of at most kByteLevels, [n / 4][kTileRows][4] bytes
// of code + kByteOffset in the front half of its memory.
template <class Lanes>
float quantize(const float* in, std::int64_t n, int levels, std::int64_t row, std::int16_t* codes) {
  auto largest = Lanes::set(0.0F);
  for (std::int64_t i = 0; i < n; i += kHalf) largest = Lanes::max(largest, Lanes::abs(Lanes::load(in + i)));
  const float max = Lanes::largest(largest);
  const auto factor = Lanes::set(max > 0.0F ? static_cast<float>(levels) / max : 0.0F);
  const float scale = max / static_cast<float>(levels);
  codes += row / kTileRows * kTileRows * n;
  if constexpr (Lanes::kByteLevels > 0) {
    if (levels <= Lanes::kByteLevels) {
      auto* bytes = reinterpret_cast<std::uint8_t*>(codes) + row % kTileRows * 4;
      for (std::int64_t i = 0; i < n; i += kHalf) {
        Lanes::store_bytes(bytes + i * kTileRows, Lanes::mul(Lanes::load(in + i), factor));
      }
      return scale;
    }
  }
  codes += row % kTileRows * Lanes::kGroup;
  for (std::int64_t i = 0; i < n; i += kHalf) {
    Lanes::store_rounded(codes + i * kTileRows, Lanes::mul(Lanes::load(in + i), factor));
  }
  return scale;
}

template <class Lanes>
void rotate(float* head, const float* cosines, const float* sines, std::int64_t half) {
  each<Lanes>(half, [=](auto lanes, std::int64_t i) {
    const auto x = lanes.load(head + i);
    const auto y = lanes.load(head + half + i);
    const auto c = lanes.load(cosines + i);
    const auto s = lanes.load(sines + i);
    lanes.store(head + i, lanes.sub(lanes.mul(x, c), lanes.mul(y, s)));
    lanes.store(head + half + i, lanes.add(lanes.mul(y, c), lanes.mul(x, s)));
  });
}

// ---- attention ------------------------------------------------------------------------------------------------------

// P panels of keys from `position` on, of which those before `end` count. Where they begin with a panel's first key
// they are written in place; what is behind the last one is overwritten by the next keys or ignored.
template <class Lanes, int P>
inline void score_panels(const Attention& task, std::int64_t position, std::int64_t end, float* scores) {
  const int num_rows = static_cast<int>(task.num_rows);
  const std::int64_t panel_stride = task.head_dim * kPanel, first = position % kPanel;
  const float* keys = task.keys + position / kPanel * panel_stride;
  if (first == 0) {
    return tile_fp32_rows<Lanes, P>(num_rows, task.queries, keys, kPanel, panel_stride, task.head_dim, scores,
                                    task.score_stride, false);
  }
  alignas(64) float tile[Lanes::kFloatRows * P * kPanel];
  tile_fp32_rows<Lanes, P>(num_rows, task.queries, keys, kPanel, panel_stride, task.head_dim, tile, P * kPanel, false);
  for (int r = 0; r < num_rows; ++r) {
    for (std::int64_t i = 0; i < end - position; ++i) {
      scores[r * task.score_stride + i] = tile[r * P * kPanel + first + i];
    }
  }
}

// scores[r][0 .. num_keys) = query . key, packed in sequence order whatever panels the keys lie in.
template <class Lanes>
inline void score_keys(const Attention& task) {
  float* scores = task.scores;
  for (std::int64_t run = 0; run < task.num_runs; ++run) {
    std::int64_t position = task.runs[run].begin;
    while (position < task.runs[run].end) {
      const std::int64_t next_panel = (position / kPanel + 1) * kPanel;
      const bool several = task.runs[run].end > next_panel && Lanes::kFloatPanels > 1;
      const std::int64_t panels_end = next_panel + (several ? (Lanes::kFloatPanels - 1) * kPanel : 0);
      const std::int64_t end = task.runs[run].end < panels_end ? task.runs[run].end : panels_end;
      several ? score_panels<Lanes, Lanes::kFloatPanels>(task, position, end, scores)
              : score_panels<Lanes, 1>(task, position, end, scores);
      scores += end - position;
      position = end;
    }
  }
}

// Scores to weights that are not yet divided by their sum, which is returned; 0 for keys that the row does not see.
template <class Lanes>
inline float weigh(float* scores, std::int64_t visible, std::int64_t num_keys, float scale) {
  using Many = typename Lanes::Many;
  constexpr int kMany = Lanes::kMany;
  const std::int64_t padded = (num_keys + kMany - 1) / kMany * kMany;
  for (std::int64_t i = visible; i < padded; ++i) scores[i] = Lanes::kLowest;
  auto highest = Many::set(Lanes::kLowest);
  for (std::int64_t i = 0; i < padded; i += kMany) highest = Many::max(highest, Many::load(scores + i));
  const auto largest = Many::set(Many::largest(highest));
  const auto factor = Many::set(scale);
  auto sum = Lanes::set(0.0F);
  for (std::int64_t i = 0; i < padded; i += kMany) {
    const auto score = Many::load(scores + i);
    auto weight = exp_eight<Many>(Many::mul(Many::sub(score, largest), factor));
    if (i + kMany > visible) weight = Many::zero_where_lowest(weight, score);
    Many::store(scores + i, weight);
    for (int part = 0; part < kMany; part += kHalf) sum = Lanes::add(sum, Lanes::load(scores + i + part));
  }
  return Lanes::sum(sum);
}

// P panels of columns of the heads' states: weights times values, each row divided by its sum.
template <class Lanes, int P>
inline void mix_values(const Attention& task, const float* sums, std::int64_t column) {
  alignas(64) float tile[Lanes::kFloatRows * P * kPanel];
  const int num_rows = static_cast<int>(task.num_rows);
  const float* weights[Lanes::kFloatRows];
  for (int r = 0; r < num_rows; ++r) weights[r] = task.scores + r * task.score_stride;
  for (std::int64_t run = 0; run < task.num_runs; ++run) {
    const std::int64_t length = task.runs[run].end - task.runs[run].begin;
    const float* values = task.values + task.runs[run].begin * task.value_stride + column;
    tile_fp32_rows<Lanes, P>(num_rows, weights, values, task.value_stride, kPanel, length, tile, P * kPanel, run != 0);
    for (int r = 0; r < num_rows; ++r) weights[r] += length;
  }
  for (int r = 0; r < num_rows; ++r) {
    const auto inverse = Lanes::set(1.0F / sums[r]);
    for (int i = 0; i < P * kPanel; i += kHalf) {
      Lanes::store(task.out[r] + column + i, Lanes::mul(Lanes::load(tile + r * P * kPanel + i), inverse));
    }
  }
}

template <class Lanes>
void attend(const Attention& task) {
  score_keys<Lanes>(task);
  float sums[Lanes::kFloatRows];
  for (std::int64_t r = 0; r < task.num_rows; ++r) {
    float* scores = task.scores + r * task.score_stride;
    sums[r] = weigh<Lanes>(scores, task.visible[r], task.num_keys, task.scale);
  }
  constexpr std::int64_t kColumns = Lanes::kFloatPanels * kPanel;
  std::int64_t column = 0;
  for (; column + kColumns <= task.head_dim; column += kColumns) {
    mix_values<Lanes, Lanes::kFloatPanels>(task, sums, column);
  }
  for (; column < task.head_dim; column += kPanel) mix_values<Lanes, 1>(task, sums, column);
}

template <class Lanes>
void exp8(const float* in, float* out) {
  Lanes::store(out, exp_eight<Lanes>(Lanes::load(in)));
}

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
