// A cell of replicas behind a load balancer, in virtual time. Each replica is the real batcher's state machine
// (batcher/core.h) between a host that does one thing at a time (an interpreter: it reads requests, runs the user
// tower and ranks answers)
// and workers that take the time of a measured curve for a batch.
//
//     arrival -> routed -> host: read -> batcher -> worker: curve(tokens) x jitter -> host: answer -> latency
//                               and on the host meanwhile: user tower
#pragma once

#include <cstdint>
#include <vector>

#include "batcher/limits.h"

namespace rgalign {

enum class Routing : std::uint8_t { kRandom, kLeastOutstanding };

// What a request ended in. rgalign/planner/simulation.py has the same order.
enum class Ended : std::uint8_t {
  kWhole,     // with the reasoner's row
  kDegraded,  // in time, without it
  kRefused,   // the queue was full
  kLost,      // its replica crashed
};

// A replica that is away from `from` until `until`. Drained: it gets no more from `from` on and finishes what it has.
// Otherwise it crashes at `from`, and the balancer notices at `noticed`: what it has or gets until then is lost.
struct Outage {
  std::int32_t replica;
  Nanoseconds from, noticed, until;
  bool drained;
};

struct CellSettings {
  Limits limits;
  std::int32_t replicas = 1;
  std::vector<double> curve_tokens, curve_ms;  // ascending; a batch's computed tokens and what they take
  std::vector<double> jitter;                  // factors of the curve, drawn evenly; not empty
  std::vector<std::int64_t> lengths;           // tokens of a request; not empty
  bool draw_lengths = true;                    // evenly; else request n has the n-th, over again from the first
  double read_ms = 0;                          // host, a request before the batcher has it
  double tower_ms = 0;                         // host, right after that, while the request waits for its batch
  double answer_ms = 0;                        // host, an answer
  double deadline_ms = 1500;
  double reserve_ms = 5;  // of the deadline, for the host after the batcher
  Routing routing = Routing::kLeastOutstanding;
  std::vector<Outage> outages;
  std::uint64_t seed = 0;
};

struct CellResult {
  std::vector<double> latency_ms;  // by arrival; of lost ones 0
  std::vector<std::uint8_t> ended;
  double seconds = 0;                     // until the last answer
  double host_busy = 0, worker_busy = 0;  // shares of replicas' time, 0 to 1
  std::int64_t batches = 0, rows = 0;
  std::int64_t most_waiting = 0;  // of one replica
};

// Args: arrivals: ascending. The same settings, arrivals and seed give the same result.
CellResult simulate_cell(const CellSettings& settings, const std::vector<Nanoseconds>& arrivals);

}  // namespace rgalign
