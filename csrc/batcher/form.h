// Which waiting requests make the next batch. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "batcher/limits.h"

namespace rgalign {

struct Candidate {
  std::int64_t num_tokens;
  bool may_be_passed;  // false: nobody behind it may go before it
};

// Fills `picked` with ascending positions in `candidates`, which are in the order of service. The first is always
// picked (alone it fits: who could never be served is not let in). The others are taken in order, where
//   rows and computed tokens stay within the budgets,
//   a padded batch's rows do not differ in length beyond `max_waste`,
//   and the whole ends at the last point at which at most `max_waste` of the computed tokens is padding; where there is
//   no such point, at the one with the least.
void form_batch(const Limits& limits, const std::vector<Candidate>& candidates, std::vector<std::int64_t>& picked);

}  // namespace rgalign
