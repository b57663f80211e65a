#include "scorer/scorer.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/arrays.h"
#include "python/without_gil.h"
#include "scorer/index.h"
#include "scorer/kernels.h"

namespace {

using Filters = py::array_t<std::uint64_t, py::array::c_style>;
using FilterOf = py::array_t<std::int32_t, py::array::c_style>;
using Rescored = py::array_t<std::int64_t, py::array::c_style>;

// The first (row, column) that no index may hold, or None. rgalign/cpu_scorer.py is the checked face of all below.
std::optional<std::pair<std::int64_t, std::int64_t>> check_index(const Scores& rows) {
  std::optional<rgalign::IndexFault> fault;
  {
    const WithoutGil released;
    fault = rgalign::ScorerIndex::check(rows.data(), rows.shape(0), rows.shape(1));
  }
  if (!fault) return std::nullopt;
  return std::make_pair(fault->row, fault->column);
}

std::unique_ptr<rgalign::ScorerIndex> make_index(const Scores& rows, bool int8) {
  const WithoutGil released;
  return std::make_unique<rgalign::ScorerIndex>(rows.data(), rows.shape(0), rows.shape(1), int8);
}

constexpr std::pair<const char*, rgalign::InstructionSet> kInstructionSets[] = {
    {"avx512", rgalign::InstructionSet::kAvx512},
    {"avx2", rgalign::InstructionSet::kAvx2},
    {"portable", rgalign::InstructionSet::kPortable},
};

// Those of this machine, the best first.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto& [name, set] : kInstructionSets) {
    if (rgalign::kernels_of(set) != nullptr) names.emplace_back(name);
  }
  return names;
}

const rgalign::Kernels* kernels_named(const std::string& wanted) {
  for (const auto& [name, set] : kInstructionSets) {
    if (wanted == name) return rgalign::kernels_of(set);
  }
  return nullptr;
}

const char* name_of(rgalign::ScoreFault::Kind kind) {
  switch (kind) {
    case rgalign::ScoreFault::Kind::kOmega:
      return "omega";
    case rgalign::ScoreFault::Kind::kUser:
      return "user";
    case rgalign::ScoreFault::Kind::kLatent:
      return "latents";
    default:
      return "query";
  }
}

template <class Array>
auto data_or_null(const std::optional<Array>& array) {
  return array ? array->data() : nullptr;
}

py::tuple score(const rgalign::ScorerIndex& index, const Scores& user, const std::optional<Scores>& latents,
                const std::optional<Scores>& weight, const std::optional<Scores>& bias, const Scores& omega,
                py::ssize_t k, const std::optional<Filters>& filters, const std::optional<FilterOf>& filter_of,
                std::int64_t num_threads, bool int8, const std::string& instructions) {
  rgalign::ScoreInput input;
  input.num_sessions = user.shape(0);
  input.user = user.data();
  input.omega = omega.data();
  input.latents = data_or_null(latents);
  input.latent_dim = latents ? latents->shape(1) : 0;
  input.weight = data_or_null(weight);
  input.bias = data_or_null(bias);
  input.filters = data_or_null(filters);
  input.filter_of = data_or_null(filter_of);

  const py::ssize_t shape[] = {user.shape(0), k};
  Rows winner_rows(shape);
  Scores scores(shape), user_part(shape), query_part(shape);
  Rescored num_rescored(user.shape(0));
  const rgalign::ScoreOutput output{k,
                                    winner_rows.mutable_data(),
                                    scores.mutable_data(),
                                    user_part.mutable_data(),
                                    query_part.mutable_data(),
                                    num_rescored.mutable_data()};
  const rgalign::ScoreOptions options{kernels_named(instructions), num_threads, int8};

  std::optional<rgalign::ScoreFault> fault;
  {
    const WithoutGil released;
    fault = rgalign::score(index, input, output, options);
  }
  if (fault) return py::make_tuple(name_of(fault->kind), fault->session);
  return py::make_tuple(winner_rows, scores, user_part, query_part, num_rescored);
}

}  // namespace

void bind_scorer(py::module_& module) {
  py::class_<rgalign::ScorerIndex>(module, "ScorerIndex", "See rgalign.cpu_scorer.CpuIndex.")
      .def(py::init(&make_index), py::arg("rows").noconvert(), py::arg("int8"))
      .def_static("check", &check_index, py::arg("rows").noconvert())
      .def_property_readonly("num_bytes", &rgalign::ScorerIndex::num_bytes);
  module.def("instruction_sets", &instruction_sets);
  module.def("score", &score, py::arg("index"), py::arg("user").noconvert(), py::arg("latents").noconvert(),
             py::arg("weight").noconvert(), py::arg("bias").noconvert(), py::arg("omega").noconvert(), py::arg("k"),
             py::arg("filters").noconvert(), py::arg("filter_of").noconvert(), py::arg("num_threads"), py::arg("int8"),
             py::arg("instructions"), "See rgalign.cpu_scorer.cpu_score.");
  module.attr("max_index_dim") = rgalign::ScorerIndex::kMaxDim;
  module.attr("max_index_magnitude") = rgalign::ScorerIndex::kMaxMagnitude;
  module.attr("max_winners") = rgalign::kMaxWinners;
}
