// The C++ core without Python, so that it can run under ThreadSanitizer: every answer is compared with a full sort.
#include "topk/topk.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::exit(1);
}

// The definition for one session: all rows in the order score descending, row ascending.
std::vector<std::int64_t> sorted_rows(const float* scores, std::int64_t num_intents) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(num_intents));
  std::iota(rows.begin(), rows.end(), 0);
  std::stable_sort(rows.begin(), rows.end(), [&](std::int64_t a, std::int64_t b) { return scores[a] > scores[b]; });
  return rows;
}

struct Case {
  std::int64_t num_sessions, num_intents, k;
  std::vector<float> scores;
  std::vector<std::int64_t> rows;
  std::vector<float> winners;

  Case(std::int64_t b, std::int64_t n, std::int64_t k_)
      : num_sessions(b),
        num_intents(n),
        k(k_),
        scores(static_cast<std::size_t>(b * n)),
        rows(static_cast<std::size_t>(b * k_)),
        winners(static_cast<std::size_t>(b * k_)) {
    std::mt19937 random(static_cast<unsigned>(b * 1000 + n + k_));
    for (float& score : scores) score = static_cast<float>(random() % 17);  // many ties
  }

  std::optional<rgalign::TopkFault> run(std::size_t num_threads) {
    return rgalign::topk({scores.data(), num_sessions, num_intents, nullptr, 0}, {rows.data(), winners.data(), k},
                         num_threads);
  }
};

void test_equals_a_full_sort_for_any_number_of_threads() {
  for (const std::int64_t num_intents : {1, 63, 64, 65, 1000}) {
    for (const std::int64_t k : {std::int64_t{1}, (num_intents + 1) / 2, num_intents}) {
      for (const std::size_t num_threads : {1, 2, 7}) {
        Case c(9, num_intents, k);
        require(!c.run(num_threads), "good input has no fault");
        for (std::int64_t session = 0; session < c.num_sessions; ++session) {
          const float* scores = c.scores.data() + session * num_intents;
          const std::vector<std::int64_t> expected = sorted_rows(scores, num_intents);
          for (std::int64_t i = 0; i < k; ++i) {
            const auto at = static_cast<std::size_t>(session * k + i);
            require(c.rows[at] == expected[static_cast<std::size_t>(i)], "rows are those of a full sort");
            require(c.winners[at] == scores[c.rows[at]], "scores are those of their rows");
          }
        }
      }
    }
  }
}

void test_the_first_fault_is_named_for_any_number_of_threads() {
  for (const std::size_t num_threads : {1, 2, 7}) {
    Case c(9, 200, 3);
    for (const std::size_t session : {4, 8}) c.scores[session * 200 + 150] = std::numeric_limits<float>::quiet_NaN();
    const auto fault = c.run(num_threads);
    require(fault && fault->kind == rgalign::TopkFault::Kind::kNanScore, "NaN is a fault");
    require(fault->session == 4 && fault->column == 150, "the first NaN is named");
  }
}

}  // namespace

int main() {
  test_equals_a_full_sort_for_any_number_of_threads();
  test_the_first_fault_is_named_for_any_number_of_threads();
  std::puts("ok");
}
