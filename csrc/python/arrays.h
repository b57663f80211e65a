// What the bindings share: contiguous arrays, never converted, so no copy hides in a call.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

using Scores = py::array_t<float, py::array::c_style>;
using Rows = py::array_t<std::int64_t, py::array::c_style>;

// One part of `rgalign._C` each.
void bind_topk(py::module_& module);
void bind_scorer(py::module_& module);
void bind_batcher(py::module_& module);
void bind_engine(py::module_& module);
void bind_planner(py::module_& module);
