#include "topk/topk.h"

#include <pybind11/stl.h>

#include <optional>

#include "python/arrays.h"
#include "python/without_gil.h"

namespace {

const char* name_of(rgalign::TopkFault::Kind kind) {
  return kind == rgalign::TopkFault::Kind::kNanScore ? "nan_score" : "candidate_out_of_range";
}

// rgalign/topk.py is the checked face of this one: shapes, k and the number of threads are its word.
py::tuple topk(const Scores& scores, py::ssize_t k, const std::optional<Rows>& candidates, std::size_t num_threads) {
  rgalign::TopkInput input;
  input.scores = scores.data();
  input.num_sessions = scores.shape(0);
  input.num_intents = scores.shape(1);
  if (candidates) {
    input.candidates = candidates->data();
    input.num_candidates = candidates->shape(1);
  }
  Rows winner_rows({scores.shape(0), k});
  Scores winner_scores({scores.shape(0), k});
  const rgalign::TopkOutput output{winner_rows.mutable_data(), winner_scores.mutable_data(), k};

  std::optional<rgalign::TopkFault> fault;
  {
    const WithoutGil released;
    fault = rgalign::topk(input, output, num_threads);
  }
  if (fault) return py::make_tuple(py::none(), py::none(), name_of(fault->kind), fault->session, fault->column);
  return py::make_tuple(winner_rows, winner_scores, py::none(), 0, 0);
}

}  // namespace

void bind_topk(py::module_& module) {
  module.def("topk", &topk, py::arg("scores").noconvert(), py::arg("k"), py::arg("candidates").noconvert(),
             py::arg("num_threads"), "See rgalign.topk.topk.");
}
