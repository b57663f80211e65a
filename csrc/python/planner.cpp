#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "planner/cell.h"
#include "python/arrays.h"
#include "python/limits.h"
#include "python/without_gil.h"

namespace {

using Seconds = py::array_t<double, py::array::c_style>;

rgalign::Outage outage_of(const py::handle& item) {
  const auto [replica, from, noticed, until, drained] =
      item.cast<std::tuple<std::int32_t, double, double, double, bool>>();
  constexpr double kMsPerSecond = 1e3;
  return {replica, nanoseconds(from * kMsPerSecond), nanoseconds(noticed * kMsPerSecond),
          nanoseconds(until * kMsPerSecond), drained};
}

// Releases the GIL. rgalign/planner/simulation.py is the checked face.
py::dict simulate_cell(const Seconds& arrivals, const py::dict& limits, std::int32_t replicas,
                       std::vector<double> curve_tokens, std::vector<double> curve_ms, std::vector<double> jitter,
                       std::vector<std::int64_t> lengths, double read_ms, double tower_ms, double answer_ms,
                       double deadline_ms, double reserve_ms, bool least_outstanding, bool draw_lengths,
                       const py::list& outages, std::uint64_t seed) {
  rgalign::CellSettings settings;
  settings.limits = limits_of(limits);
  settings.replicas = replicas;
  settings.curve_tokens = std::move(curve_tokens);
  settings.curve_ms = std::move(curve_ms);
  settings.jitter = std::move(jitter);
  settings.lengths = std::move(lengths);
  settings.read_ms = read_ms;
  settings.tower_ms = tower_ms;
  settings.answer_ms = answer_ms;
  settings.deadline_ms = deadline_ms;
  settings.reserve_ms = reserve_ms;
  settings.routing = least_outstanding ? rgalign::Routing::kLeastOutstanding : rgalign::Routing::kRandom;
  settings.draw_lengths = draw_lengths;
  for (const py::handle& outage : outages) settings.outages.push_back(outage_of(outage));
  settings.seed = seed;
  std::vector<rgalign::Nanoseconds> times(static_cast<std::size_t>(arrivals.size()));
  for (std::size_t i = 0; i < times.size(); ++i) times[i] = nanoseconds(arrivals.data()[i] * 1e3);
  rgalign::CellResult result;
  {
    const WithoutGil released;
    result = rgalign::simulate_cell(settings, times);
  }
  py::dict shown;
  shown["latency_ms"] = py::array_t<double>(static_cast<py::ssize_t>(times.size()), result.latency_ms.data());
  shown["ended"] = py::array_t<std::uint8_t>(static_cast<py::ssize_t>(times.size()), result.ended.data());
  shown["seconds"] = result.seconds;
  shown["host_busy"] = result.host_busy;
  shown["worker_busy"] = result.worker_busy;
  shown["batches"] = result.batches;
  shown["rows"] = result.rows;
  shown["most_waiting"] = result.most_waiting;
  return shown;
}

}  // namespace

void bind_planner(py::module_& module) {
  module.def("simulate_cell", &simulate_cell, py::arg("arrivals").noconvert(), py::kw_only(), py::arg("limits"),
             py::arg("replicas"), py::arg("curve_tokens"), py::arg("curve_ms"), py::arg("jitter"), py::arg("lengths"),
             py::arg("read_ms"), py::arg("tower_ms"), py::arg("answer_ms"), py::arg("deadline_ms"),
             py::arg("reserve_ms"), py::arg("least_outstanding"), py::arg("draw_lengths"), py::arg("outages"),
             py::arg("seed"));
}
