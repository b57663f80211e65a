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
#include "python/without_gil.h"

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

constexpr std::pair<const char*, InstructionSet> kInstructionSets[] = {{"amx", InstructionSet::kAmx},
                                                                       {"avx512", InstructionSet::kAvx512},
                                                                       {"avx2", InstructionSet::kAvx2},
                                                                       {"portable", InstructionSet::kPortable}};

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

using Sizes = std::vector<std::int64_t>;

// Nothing is read through a pointer whose array was not seen to have the model's sizes.
void require_sizes(const std::string& name, const py::array& values, const Sizes& sizes) {
  const Sizes found(values.shape(), values.shape() + values.ndim());
  if (found == sizes) return;
  const auto written = [](const Sizes& each) {
    std::string text = "[";
    for (std::size_t i = 0; i < each.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(each[i]);
    return text + "]";
  };
  throw py::value_error(name + ": required " + written(sizes) + "; received " + written(found));
}

std::vector<float> vector_of(const std::string& name, const Scores& values, std::int64_t size) {
  require_sizes(name, values, {size});
  return {values.data(), values.data() + size};
}

// Never converted: codes read as numbers would be weights of another model.
template <class Array>
Array array_named(const py::dict& layer, const std::string& name) {
  const py::object value = layer[name.c_str()];
  if (!py::isinstance<Array>(value)) {
    throw py::type_error(name + ": required a contiguous array of the model's type; received " +
                         py::repr(value.attr("dtype")).cast<std::string>());
  }
  return py::reinterpret_borrow<Array>(value);
}

// Either [out, in] float32, or int8 codes and a scale a row: which, the model says.
PackedMatrix packed(const Model& model, const py::dict& layer, const std::string& name, std::int64_t out,
                    std::int64_t in) {
  const auto bias_name = name + ".bias", scale_name = name + ".scale", weight_name = name + ".weight";
  Vector bias;
  if (layer.contains(bias_name)) {
    bias = array_named<Scores>(layer, bias_name);
    require_sizes(bias_name, *bias, {out});
  }
  const float* bias_data = bias ? bias->data() : nullptr;
  if (model.shape.activation_levels > 0) {
    const auto codes = array_named<Codes>(layer, weight_name);
    const auto scales = array_named<Scores>(layer, scale_name);
    require_sizes(weight_name, codes, {out, in});
    require_sizes(scale_name, scales, {out});
    return PackedMatrix::int8(codes.data(), scales.data(), bias_data, out, in, model.kernels->group);
  }
  const auto weight = array_named<Scores>(layer, weight_name);
  require_sizes(weight_name, weight, {out, in});
  return PackedMatrix::fp32(weight.data(), bias_data, out, in);
}

std::unique_ptr<Model> make_model(const py::dict& shape, const std::optional<Bf16>& embed_bf16, const Vector& embed,
                                  const Scores& final_norm, const Scores& inverse_frequencies,
                                  const std::string& instructions) {
  auto model = std::make_unique<Model>();
  model->kernels = &kernels_named(instructions);
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
                  shape["activation_levels"].cast<int>(),
                  size("vocabulary")};
  model->shape.check();
  const Sizes table{model->shape.vocabulary, model->shape.hidden};
  if (embed_bf16) {
    require_sizes("embed", *embed_bf16, table);
    model->embed_bf16.assign(embed_bf16->data(), embed_bf16->data() + embed_bf16->size());
  } else if (embed) {
    require_sizes("embed", *embed, table);
    model->embed_fp32.assign(embed->data(), embed->data() + embed->size());
  } else {
    throw py::value_error("embed: required a table; received none");
  }
  model->final_norm = vector_of("final_norm", final_norm, model->shape.hidden);
  model->inverse_frequencies = vector_of("inverse_frequencies", inverse_frequencies, model->shape.head_dim / 2);
  return model;
}

void add_layer(Model& model, const py::dict& layer) {
  const rgalign::engine::ModelShape& shape = model.shape;
  const auto norm = [&](const char* name, std::int64_t size) {
    return vector_of(name, array_named<Scores>(layer, name), size);
  };
  const std::int64_t hidden = shape.hidden, queries = shape.query_width();
  rgalign::engine::Layer made{norm("input_norm", hidden),
                              norm("post_norm", hidden),
                              {},
                              {},
                              packed(model, layer, "qkv", queries + 2 * shape.kv_width(), hidden),
                              packed(model, layer, "out", hidden, queries),
                              packed(model, layer, "gate_up", 2 * shape.intermediate, hidden),
                              packed(model, layer, "down", hidden, shape.intermediate)};
  if (shape.qk_norm) {
    made.query_norm = norm("query_norm", shape.head_dim);
    made.key_norm = norm("key_norm", shape.head_dim);
  }
  model.layers.push_back(std::move(made));
}

std::unique_ptr<Session> make_session(const Model& model, std::int64_t num_threads) {
  if (static_cast<std::int64_t>(model.layers.size()) != model.shape.num_layers) {
    throw py::value_error("layers: required " + std::to_string(model.shape.num_layers) + "; received " +
                          std::to_string(model.layers.size()));
  }
  return std::make_unique<Session>(model, num_threads);
}

void set_prefix(Session& session, const Ints& token_ids) {
  const WithoutGil released;
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
  const WithoutGil released;
  session.forward(pack);
  return out;
}

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<Model>(module, "EngineModel", "See rgalign.reasoner.engine.artifact.")
      .def(py::init(&make_model), py::arg("shape"), py::arg("embed_bf16").noconvert(),
           py::arg("embed_fp32").noconvert(), py::arg("final_norm").noconvert(),
           py::arg("inverse_frequencies").noconvert(), py::arg("instructions"))
      .def("add_layer", &add_layer, py::arg("layer"))
      .def_property_readonly("num_bytes", &Model::num_bytes);
  py::class_<Session>(module, "EngineSession", "One caller's forward passes. See rgalign.reasoner.engine.reasoner.")
      .def(py::init(&make_session), py::arg("model"), py::arg("num_threads"), py::keep_alive<1, 2>())
      .def("set_prefix", &set_prefix, py::arg("token_ids").noconvert())
      .def("forward", &forward, py::arg("hidden"), py::arg("token_ids").noconvert(), py::arg("depths").noconvert(),
           py::arg("given").noconvert(), py::arg("segments").noconvert(), py::arg("runs").noconvert(),
           py::arg("last").noconvert())
      .def_property_readonly("num_bytes", &Session::num_bytes);
  module.def("engine_instruction_sets", &engine_instruction_sets);
}
