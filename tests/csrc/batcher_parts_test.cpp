// The parts that the batcher's state machine is made of, each against a plain definition.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "batcher/capacity.h"
#include "batcher/clients.h"
#include "batcher/deadlines.h"

namespace {

using namespace rgalign;  // NOLINT

constexpr Nanoseconds kMs = 1'000'000;

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

void test_the_papers_queue_cap() {
  Limits limits;
  limits.max_rows = 6;
  Capacity capacity(limits);
  require(capacity.queue_cap() == 64, "64 until something is measured");
  // 6 rows in 120 ms are 50 a second; (1.5 - 0.12 - 0.1) * 50 = 64.
  capacity.batch_done(6, 120 * kMs, true);
  require(capacity.queue_cap() == 64, "the paper's figures give 64");
  require(capacity.time_to_serve(50) == 1'000 * kMs, "50 waiting are a second's work");
  for (int i = 0; i < 50; ++i) capacity.batch_done(6, 1'200 * kMs, true);
  require(capacity.queue_cap() == 6, "a slower model is given a shorter queue, of a batch at least");
  for (int i = 0; i < 50; ++i) capacity.batch_done(6, 12 * kMs, true);
  require(std::abs(capacity.queue_cap() - 694) <= 1, "a faster one a longer queue");
  capacity.batch_done(1, 12 * kMs, false);
  require(std::abs(capacity.queue_cap() - 694) <= 1, "a batch that was not full says nothing of a lower capacity");
}

void test_a_given_queue_cap_stays() {
  Limits limits;
  limits.max_queue = 7;
  Capacity capacity(limits);
  for (int i = 0; i < 20; ++i) capacity.batch_done(32, kMs, true);
  require(capacity.queue_cap() == 7, "an explicit cap is not measured over");
}

void test_clients_against_a_map() {
  std::mt19937 random(1);
  Clients clients(8);
  std::map<std::uint64_t, std::int64_t> expected;
  std::vector<std::uint64_t> held;
  for (int i = 0; i < 20'000; ++i) {
    if (held.size() < 8 && random() % 2 == 0) {
      // Few homes, so that entries collide and removals leave gaps to close.
      held.push_back(1 + random() % 12);
      clients.add(held.back());
      ++expected[held.back()];
    } else if (!held.empty()) {
      const auto at = random() % held.size();
      clients.remove(held[at]);
      --expected[held[at]];
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
    for (std::uint64_t client = 1; client <= 12; ++client) {
      require(clients.count(client) == expected[client], "clients are counted");
    }
  }
}

void test_deadlines_against_a_search() {
  std::mt19937 random(2);
  constexpr std::int32_t kSlots = 16;
  Deadlines deadlines(kSlots);
  std::map<std::int32_t, Nanoseconds> expected;
  require(deadlines.earliest() == Deadlines::kNever, "nothing is never due");
  for (int i = 0; i < 20'000; ++i) {
    const auto slot = static_cast<std::int32_t>(random() % kSlots);
    if (expected.count(slot) > 0) {
      deadlines.remove(slot);
      expected.erase(slot);
    } else {
      expected[slot] = static_cast<Nanoseconds>(random() % 8);  // many ties
      deadlines.add(slot, expected[slot]);
    }
    if (expected.empty()) continue;
    const auto first = std::min_element(expected.begin(), expected.end(), [](const auto& a, const auto& b) {
      return std::make_pair(a.second, a.first) < std::make_pair(b.second, b.first);
    });
    require(deadlines.earliest() == first->second && deadlines.earliest_slot() == first->first,
            "the earliest comes first");
  }
}

}  // namespace

int main() {
  test_the_papers_queue_cap();
  test_a_given_queue_cap_stays();
  test_clients_against_a_map();
  test_deadlines_against_a_search();
  std::puts("ok");
}
