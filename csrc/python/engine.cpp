#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/kernels.h"
#include "engine/model.h"
#include "engine/session.h"
#include "python/arrays.h"

namespace {

using rgalign::engine::InstructionSet;
using rgalign::engine::Kernels;
using rgalign::engine::Model;
using rgalign::engine::PackedMatrix;
using rgalign::engine::Session;
using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Codes = py::array_t<std::int8_t, py::array::c_style>;
using Bf16 = py::array_t<std::uint16_t, py::array::c_style>;
using Vector = std::optional<Scores>;

constexpr std::pair<const char*, InstructionSet> kInstructionSets[] = {
    {"avx512", InstructionSet::kAvx512}, {"avx2", InstructionSet::kAvx2}, {"portable", InstructionSet::kPortable}};

const Kernels& kernels_named(const std::string& name) {
  for (const auto& [known, set] : kInstructionSets) {
    if (name == known) return *rgalign::engine::kernels_of(set);
  }
  return rgalign::engine::best_kernels();
}

std::vector<std::string> engine_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& [name, set] : kInstructionSets) {
    if (rgalign::engine::kernels_of(set) != nullptr) names.emplace_back(name);
  }
  return names;
}

std::vector<float> vector_of(const Vector& values) {
  return values ? std::vector<float>(values->data(), values->data() + values->size()) : std::vector<float>();
}

// Either [out, in] float32, or int8 codes and a scale a row.
PackedMatrix packed(const py::dict& layer, const std::string& name) {
  const auto find = [&](const char* what) -> py::object {
    const std::string key = name + "." + what;
    return layer.contains(key) ? py::object(layer[key.c_str()]) : py::none();
  };
  const auto bias = find("bias").cast<Vector>();
  const float* bias_data = bias ? bias->data() : nullptr;
  if (const auto scales = find("scale").cast<Vector>()) {
    const auto codes = find("weight").cast<Codes>();
    return PackedMatrix::int8(codes.data(), scales->data(), bias_data, codes.shape(0), codes.shape(1));
  }
  const auto weight = find("weight").cast<Scores>();
  return PackedMatrix::fp32(weight.data(), bias_data, weight.shape(0), weight.shape(1));
}

std::unique_ptr<Model> make_model(const py::dict& shape, const std::optional<Bf16>& embed_bf16, const Vector& embed,
                                  const Scores& final_norm, const Scores& inverse_frequencies) {
  auto model = std::make_unique<Model>();
  const auto size = [&](const char* name) { return shape[name].cast<std::int64_t>(); };
  model->shape = {size("num_layers"),
                  size("hidden"),
                  size("intermediate"),
                  size("num_heads"),
                  size("num_kv_heads"),
                  size("head_dim"),
                  shape["eps"].cast<float>(),
                  shape["rope_scale"].cast<float>(),
                  shape["qk_norm"].cast<bool>(),
                  shape["activation_levels"].cast<int>()};
  if (embed_bf16) model->embed_bf16.assign(embed_bf16->data(), embed_bf16->data() + embed_bf16->size());
  if (embed) model->embed_fp32.assign(embed->data(), embed->data() + embed->size());
  model->final_norm = vector_of(final_norm);
  model->inverse_frequencies = vector_of(inverse_frequencies);
  return model;
}

void add_layer(Model& model, const py::dict& layer) {
  const auto norm = [&](const char* name) {
    return vector_of(layer.contains(name) ? layer[name].cast<Vector>() : std::nullopt);
  };
  model.layers.push_back({norm("input_norm"), norm("post_norm"), norm("query_norm"), norm("key_norm"),
                          packed(layer, "qkv"), packed(layer, "out"), packed(layer, "gate_up"), packed(layer, "down")});
}

std::unique_ptr<Session> make_session(const Model& model, std::int64_t num_threads, const std::string& instructions) {
  return std::make_unique<Session>(model, kernels_named(instructions), num_threads);
}

void set_prefix(Session& session, const Ints& token_ids) {
  const py::gil_scoped_release released;
  session.set_prefix(token_ids.data(), token_ids.size());
}

// segments [S, 4] and runs [R, 2] are structs of int32; rgalign/reasoner/engine/reasoner.py makes all of them.
Scores forward(Session& session, std::int64_t hidden, const Ints& token_ids, const Ints& depths, const Ints& given,
               const Ints& segments, const Ints& runs, const Ints& last) {
  const py::ssize_t shape[] = {last.size(), hidden};
  Scores out(shape);
  const rgalign::engine::Pack pack{token_ids.size(),
                                   token_ids.data(),
                                   depths.data(),
                                   given.size(),
                                   given.data(),
                                   segments.shape(0),
                                   reinterpret_cast<const rgalign::engine::Segment*>(segments.data()),
                                   reinterpret_cast<const rgalign::engine::Run*>(runs.data()),
                                   last.size(),
                                   last.data(),
                                   out.mutable_data()};
  const py::gil_scoped_release released;
  session.forward(pack);
  return out;
}

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<Model>(module, "EngineModel", "See rgalign.reasoner.engine.artifact.")
      .def(py::init(&make_model), py::arg("shape"), py::arg("embed_bf16"), py::arg("embed_fp32"), py::arg("final_norm"),
           py::arg("inverse_frequencies"))
      .def("add_layer", &add_layer, py::arg("layer"))
      .def_property_readonly("num_bytes", &Model::num_bytes);
  py::class_<Session>(module, "EngineSession", "One caller's forward passes. See rgalign.reasoner.engine.reasoner.")
      .def(py::init(&make_session), py::arg("model"), py::arg("num_threads"), py::arg("instructions"),
           py::keep_alive<1, 2>())
      .def("set_prefix", &set_prefix, py::arg("token_ids").noconvert())
      .def("forward", &forward, py::arg("hidden"), py::arg("token_ids").noconvert(), py::arg("depths").noconvert(),
           py::arg("given").noconvert(), py::arg("segments").noconvert(), py::arg("runs").noconvert(),
           py::arg("last").noconvert())
      .def_property_readonly("num_bytes", &Session::num_bytes);
  module.def("engine_instruction_sets", &engine_instruction_sets);
}
