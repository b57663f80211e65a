// What goes into a batch, and how its tokens lie in the caller's buffers.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "batcher/form.h"
#include "batcher/pack.h"

namespace {

using namespace rgalign;  // NOLINT

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

using Picked = std::vector<std::int64_t>;

Picked picked(const Limits& limits, const std::vector<std::int64_t>& lengths, std::size_t not_to_be_passed = 99) {
  std::vector<Candidate> candidates;
  for (std::size_t i = 0; i < lengths.size(); ++i) candidates.push_back({lengths[i], i != not_to_be_passed});
  Picked rows;
  form_batch(limits, candidates, rows);
  return rows;
}

void test_packed_batches_fill_the_budgets() {
  Limits limits;
  limits.max_tokens = 100;
  limits.max_rows = 3;
  require(picked(limits, {10, 10, 10, 10}) == Picked({0, 1, 2}), "rows within their budget");
  require(picked(limits, {60, 30, 20, 10}) == Picked({0, 1, 3}), "what does not fit is passed over");
  require(picked(limits, {60, 50, 40, 10}, 1) == Picked({0}), "unless it may not be");
  require(picked(limits, {100, 1}) == Picked({0}), "a full batch");
}

void test_buckets_end_a_batch_where_little_is_padding() {
  Limits limits;
  limits.token_buckets = std::vector<std::int64_t>{128, 256, 512};
  limits.max_tokens = 512;
  limits.max_waste = 0.25;
  require(picked(limits, {120, 20}) == Picked({0}), "140 of 256 is worse than 120 of 128");
  require(picked(limits, {100, 100, 100, 100}) == Picked({0, 1, 2, 3}), "300 of 512 lies on the way to 400 of 512");
  require(picked(limits, {100, 100, 100}) == Picked({0, 1}), "300 of 512 is no place to end");
  require(picked(limits, {10}) == Picked({0}), "one alone goes, whatever the padding: nobody waits for company");
  require(picked(limits, {10, 60}) == Picked({0, 1}), "and with company there is less of it");
}

void test_padded_batches_hold_rows_of_like_length() {
  Limits limits;
  limits.layout = Layout::kPadded;
  limits.max_waste = 0.25;
  require(picked(limits, {100, 10, 90, 80}) == Picked({0, 2, 3}), "a short row would pad itself to 100");
  require(picked(limits, {10, 100, 12, 90}) == Picked({0, 2}), "a long row would pad the others");
  require(picked(limits, {100, 10, 90}, 1) == Picked({0}), "nobody overtakes one that was passed over often enough");
  limits.row_buckets = std::vector<std::int64_t>{4, 8};
  require(picked(limits, {50, 50, 50, 50, 50}) == Picked({0, 1, 2, 3}),
          "five of eight rows are worse than four of four");
  limits.max_waste = 0;
  require(picked(limits, {50, 49, 50}) == Picked({0, 2}), "no padding at all");
}

// Whatever the rows, the buffers hold the definition's batch and nothing outside it is touched.
void test_pack_is_the_definition() {
  std::mt19937 random(3);
  constexpr std::int32_t kUntouched = -77;
  const Filling filling{9, 100};
  for (int trial = 0; trial < 2000; ++trial) {
    Limits limits;
    limits.layout = trial % 2 == 0 ? Layout::kPacked : Layout::kPadded;
    if (random() % 2 == 0) limits.token_buckets = std::vector<std::int64_t>{8, 16, 64, 256};
    if (random() % 2 == 0) limits.row_buckets = std::vector<std::int64_t>{2, 8};
    limits.max_rows = 8;
    limits.max_tokens = 8 * 64;
    std::vector<std::vector<std::int32_t>> ids(1 + random() % 8);
    std::vector<TokenRow> rows;
    std::int64_t tokens = 0, longest = 0;
    for (auto& row : ids) {
      row.resize(1 + random() % 32);
      for (auto& id : row) id = static_cast<std::int32_t>(random() % 1000);
      rows.push_back({row.data(), static_cast<std::int64_t>(row.size())});
      tokens += static_cast<std::int64_t>(row.size());
      longest = std::max(longest, static_cast<std::int64_t>(row.size()));
    }
    const auto num_rows = static_cast<std::int64_t>(rows.size());
    const std::int64_t computed = computed_tokens(limits, num_rows, tokens, longest);
    const auto size = static_cast<std::size_t>(computed);
    std::vector<std::int32_t> expected(size, filling.pad_token), places(size, filling.first_position);
    std::int64_t offset = 0;
    std::vector<std::int32_t> offsets(9, static_cast<std::int32_t>(tokens));
    for (std::int64_t r = 0; r < num_rows; ++r) {
      const std::int64_t width = bucket_of(limits.token_buckets, longest);
      const std::int64_t begin = limits.layout == Layout::kPacked ? offset : r * width;
      offsets[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(offset);
      for (std::int64_t t = 0; t < rows[static_cast<std::size_t>(r)].num_tokens; ++t) {
        expected[static_cast<std::size_t>(begin + t)] = rows[static_cast<std::size_t>(r)].token_ids[t];
        places[static_cast<std::size_t>(begin + t)] = filling.first_position + static_cast<std::int32_t>(t);
      }
      offset += rows[static_cast<std::size_t>(r)].num_tokens;
    }
    std::vector<std::int32_t> token_ids(size + 5, kUntouched), positions(size + 5, kUntouched);
    std::vector<std::int32_t> cu_seqlens(9 + 5, kUntouched);
    const BatchShape shape =
        pack(limits, filling, rows.data(), num_rows, {token_ids.data(), positions.data(), cu_seqlens.data()});
    require(shape.rows == num_rows && shape.tokens == tokens && shape.longest == longest, "the batch's shape");
    require(shape.computed_tokens == computed, "with its padding");
    expected.resize(size + 5, kUntouched);
    places.resize(size + 5, kUntouched);
    offsets.resize(9 + 5, kUntouched);
    require(token_ids == expected, "token ids");
    require(positions == places, "positions");
    require(cu_seqlens == offsets, "cu_seqlens");
  }
}

}  // namespace

int main() {
  test_packed_batches_fill_the_budgets();
  test_buckets_end_a_batch_where_little_is_padding();
  test_padded_batches_hold_rows_of_like_length();
  test_pack_is_the_definition();
  std::puts("ok");
}
