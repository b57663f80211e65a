// Batch budgets and queue bounds by name, as rgalign.batcher.BatcherConfig has them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "batcher/limits.h"

inline rgalign::Nanoseconds nanoseconds(double ms) {
  constexpr double kPerMs = 1e6, kLongest = 9.0e18;
  return static_cast<rgalign::Nanoseconds>(std::clamp(ms * kPerMs, -1.0, kLongest));
}

// Raises KeyError where one is missing; others are not read.
inline rgalign::Limits limits_of(const pybind11::dict& settings) {
  const auto whole = [&](const char* name) { return settings[name].cast<std::int64_t>(); };
  const auto real = [&](const char* name) { return settings[name].cast<double>(); };
  const auto many = [&](const char* name) { return settings[name].cast<std::vector<std::int64_t>>(); };
  rgalign::Limits limits;
  limits.max_rows = whole("max_rows");
  limits.max_tokens = whole("max_tokens");
  limits.max_request_tokens = whole("max_request_tokens");
  limits.layout = settings["padded"].cast<bool>() ? rgalign::Layout::kPadded : rgalign::Layout::kPacked;
  limits.token_buckets = many("token_buckets");
  limits.row_buckets = many("row_buckets");
  limits.max_waste = real("max_waste");
  limits.max_passes = whole("max_passes");
  limits.max_queue = whole("max_queue");
  limits.queue_limit = whole("queue_limit");
  limits.deadline = nanoseconds(real("deadline_ms"));
  limits.slack = nanoseconds(real("slack_ms"));
  limits.max_per_client = whole("max_per_client");
  limits.bulk_every = whole("bulk_every");
  limits.num_workers = whole("num_workers");
  return limits;
}
