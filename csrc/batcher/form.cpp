#include "batcher/form.h"

namespace rgalign {
namespace {

double waste(std::int64_t tokens, std::int64_t computed) {
  return 1.0 - static_cast<double>(tokens) / static_cast<double>(computed);
}

// Padding inside the rows alone: what a row of another length adds for good, unlike a bucket that later rows may fill.
double row_waste(const Limits& limits, std::int64_t rows, std::int64_t tokens, std::int64_t longest) {
  if (limits.layout == Layout::kPacked) return 0.0;
  return waste(tokens, rows * bucket_of(limits.token_buckets, longest));
}

}  // namespace

void form_batch(const Limits& limits, const std::vector<Candidate>& candidates, std::vector<std::int64_t>& picked) {
  picked.clear();
  std::int64_t tokens = 0, longest = 0;
  std::size_t best_rows = 0;
  double best_waste = 1.0, rows_waste = 0.0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const auto rows = static_cast<std::int64_t>(picked.size()) + 1;
    if (rows > limits.max_rows) break;
    const std::int64_t with_it = tokens + candidates[i].num_tokens;
    const std::int64_t longest_with_it = std::max(longest, candidates[i].num_tokens);
    if (i > 0) {
      const bool room = fits(limits, rows, with_it, longest_with_it);
      const double allowed = std::max(limits.max_waste, rows_waste);
      if (!room || row_waste(limits, rows, with_it, longest_with_it) > allowed) {
        if (!candidates[i].may_be_passed) break;
        continue;
      }
    }
    picked.push_back(static_cast<std::int64_t>(i));
    tokens = with_it;
    longest = longest_with_it;
    rows_waste = row_waste(limits, rows, tokens, longest);
    const double now = waste(tokens, computed_tokens(limits, rows, tokens, longest));
    if (now <= std::max(limits.max_waste, best_waste)) {
      best_rows = picked.size();
      best_waste = now;
    }
  }
  picked.resize(best_rows);
}

}  // namespace rgalign
