// The inner loops of the CPU scorer, once per instruction set. All sets give the same bits for every float they return:
//
//   a score is one lane's chain of fused multiply-adds over the coordinates in ascending order, from +0;
//   a projected coordinate is eight such chains (lane j: coordinates j, j + 8, ...) and one fixed tree.
//
// Only the reach of the approximate scan (`query_levels`) differs; the scorer's exact answer does not depend on it.
#pragma once

#include <cstdint>

namespace rgalign {

// Catalogue rows come in panels of 32, interleaved, so that a vector register holds one coordinate of several rows:
//   fp32 panel  float [dim][32];   int8 panel  int8 [dim8 / 4][32][4], dim8 = dim rounded up to 8.
// Rows and coordinates that are not there are zero.
constexpr std::int64_t kPanelRows = 32;

// Row codes are in [-kMaxCode, kMaxCode]. AVX2 adds four products in 16 bits before it widens them: of coordinates
// 8 j + {0, 1, 4, 5} and of 8 j + {2, 3, 6, 7}. The magnitudes of such four codes add up to at most kMaxFourCodes, so
// with unsigned query codes of at most 126 no sum passes 126 * 260 = 32,760 < 2^15: none saturates.
constexpr int kMaxCode = 127;
constexpr int kMaxFourCodes = 260;

constexpr int kMaxTileQueries = 6;  // queries scored together; they are packed interleaved, [dim][num_queries]
constexpr int kMaxSpan = 4;         // panels scored together for a single query
constexpr int kMaxDots = 8;         // chains of one call of `dots`
constexpr int kMaxProjectQueries = 3;
constexpr std::int64_t kProjectRows = 8;  // weight rows that are best asked for together

// Scores of one panel for each query of a tile, or of `span` panels for a single query: slot s is
// (panel + s / num_queries, query s % num_queries). Bit r of a mask: row r of the panel is above the query's threshold.
struct Hit {
  std::int64_t panel;
  int span;
  std::uint32_t masks[kMaxTileQueries];
  alignas(64) float scores[kMaxTileQueries][kPanelRows];
};
static_assert(kMaxSpan <= kMaxTileQueries);

struct Fp32Tile {
  const float* panels;  // of the whole catalogue
  std::int64_t dim;
  const float* queries;  // [dim][num_queries]
  int num_queries;
  const float* thresholds;  // [num_queries]; read at every call
};

struct Int8Tile {
  const std::int8_t* panels;
  const std::int32_t* row_sums;  // [panels * 32] sum of each row's codes
  const float* row_scales;       // [panels * 32]
  std::int64_t dim8;
  const std::uint32_t* queries;  // [dim8 / 4][num_queries], four bytes each: code + query_levels
  int num_queries;
  const float* thresholds;  // of row_scale * (row codes . query codes)
};

struct Kernels {
  const char* name;
  int fp32_tile_queries;
  int int8_tile_queries;
  int query_levels;  // query codes are in [-query_levels, query_levels]; row codes as kMaxCode and kMaxFourCodes say

  // The first panel in [begin, end) with a row above its query's threshold; false when there is none.
  bool (*next_hit_fp32)(const Fp32Tile& tile, std::int64_t begin, std::int64_t end, Hit& hit);
  // The same with approximate scores, row_scale * integer dot product, one rounding each.
  bool (*next_hit_int8)(const Int8Tile& tile, std::int64_t begin, std::int64_t end, Hit& hit);

  // out[i] = score of queries[i] [dim] and the row whose coordinates are rows[i][0], rows[i][stride], ...;
  // count <= kMaxDots.
  void (*dots)(const float* const* queries, const float* const* rows, std::int64_t stride, int count, std::int64_t dim,
               float* out);

  // out[i * out_stride + r] = weight[r] . inputs[i], for rows [0, num_rows) of `weight` [.., width]; count <= 3.
  void (*project)(const float* weight, std::int64_t num_rows, std::int64_t width, const float* const* inputs, int count,
                  float* out, std::int64_t out_stride);
};

enum class InstructionSet { kPortable, kAvx2, kAvx512 };

// Null where this build or this CPU does not have the set.
const Kernels* kernels_of(InstructionSet set);
const Kernels& best_kernels();

namespace detail {
extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif
}  // namespace detail

}  // namespace rgalign
