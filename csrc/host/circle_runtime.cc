// SPDX-License-Identifier: Apache-2.0
#include "host/circle_runtime.h"

namespace pyquant::host {
namespace {

using circle::DType;

/// How a port of a file passes; false for a dtype that no host has.
bool form_of(const circle::Tensor& tensor, Type& type, ScaleZeroPoint& grid) {
  switch (tensor.dtype) {
    case DType::FLOAT32:
      type = Type::Float32;
      break;
    case DType::INT32:
      type = Type::Int32;
      break;
    case DType::INT64:
      type = Type::Int64;
      break;
    case DType::BOOL:
      type = Type::Bool;
      break;
    case DType::INT8:
      type = Type::Int8;
      break;
    case DType::UINT8:
      type = Type::UInt8;
      break;
    case DType::INT16:
      type = Type::Int16;
      break;
    default:
      return false;
  }
  if (type < Type::Int8) return true;
  if (!tensor.quant || tensor.quant->scale.size() != 1 || tensor.quant->zero_point.size() != 1) return false;
  grid = {tensor.quant->scale[0], static_cast<int32_t>(tensor.quant->zero_point[0])};
  return true;
}

/// An input or output of a graph, and the bytes of an input that were made for it.
struct Port {
  std::string name;
  Type type = Type::Float32;
  ScaleZeroPoint grid{1, 0};
  std::vector<uint8_t> made;

  /// The bytes of `tensor` as this port takes them.
  const void* bytes_of(const Tensor& tensor) {
    const bool same_grid = tensor.grid.scale == grid.scale && tensor.grid.zero_point == grid.zero_point;
    if (tensor.type == type && (type < Type::Int8 || same_grid)) return tensor.bytes.data();
    if (type == Type::Float32) {
      made = tensor.as_floats().bytes;
    } else {
      quantize(tensor, type, grid, grid.zero_point == 0, made);
    }
    return made.data();
  }
};

}  // namespace

struct CircleRuntime::Loaded {
  explicit Loaded(run::Runner given) : runner(std::move(given)) {}
  run::Runner runner;
  std::vector<Port> inputs, outputs;
};

CircleRuntime::CircleRuntime(const Manifest& manifest, const std::string& folder, int threads)
    : folder_(folder), workspace_(std::make_shared<run::Workspace>(threads)) {
  for (const auto& [name, graph] : manifest.graphs) files_[name] = {graph.file, graph.signature};
}

CircleRuntime::~CircleRuntime() = default;

Result<CircleRuntime::Loaded*> CircleRuntime::load(const std::string& graph) {
  auto& loaded = loaded_[graph];
  if (loaded) return loaded.get();
  const auto& [file, signature] = files_[graph];
  const std::string path = folder_ + "/" + file;
  auto& opened = programs_[file];
  if (!opened) {
    PYQUANT_TRY_ASSIGN(opened, run::Program::load(path));
  }
  PYQUANT_TRY_ASSIGN(auto program, opened->with_signature(signature));
  auto made = std::make_unique<Loaded>(run::Runner(program, workspace_));
  for (const bool inputs : {true, false}) {
    for (const run::Port& port : inputs ? program->inputs() : program->outputs()) {
      Port own;
      own.name = port.name;
      if (!form_of(*port.tensor, own.type, own.grid)) {
        return Fault{Code::E_MANIFEST, "'" + port.name + "' has a dtype or grid that no host passes", path};
      }
      (inputs ? made->inputs : made->outputs).push_back(std::move(own));
    }
  }
  loaded = std::move(made);
  return loaded.get();
}

Result<Outputs> CircleRuntime::run(const std::string& graph, const Inputs& inputs) {
  PYQUANT_TRY_ASSIGN(Loaded* const loaded, load(graph));
  std::vector<run::Shape> shapes;
  std::vector<const void*> given;
  for (Port& port : loaded->inputs) {
    const auto found = inputs.find(port.name);
    const bool fits = found != inputs.end() && (found->second->type == port.type ||
                                                (is_real(port.type) && is_real(found->second->type)));
    if (!fits) {
      return Fault{Code::E_MANIFEST,
                   "the file takes '" + port.name + "' as " + type_name(port.type) +
                       ", the manifest says otherwise; export the bundle again",
                   folder_ + "/" + files_[graph].first};
    }
    shapes.emplace_back(found->second->shape.begin(), found->second->shape.end());
    given.push_back(port.bytes_of(*found->second));
  }
  PYQUANT_TRY(loaded->runner.prepare(shapes));
  Outputs made;
  std::vector<void*> results;
  for (size_t k = 0; k < loaded->outputs.size(); ++k) {
    const Port& port = loaded->outputs[k];
    Tensor& tensor = made[port.name];
    tensor.type = port.type;
    tensor.grid = port.grid;
    const run::Shape& shape = loaded->runner.output_shape(k);
    tensor.shape.assign(shape.begin(), shape.end());
    tensor.bytes.resize(static_cast<size_t>(loaded->runner.output_bytes(k)));
    results.push_back(tensor.bytes.data());
  }
  PYQUANT_TRY(loaded->runner.run(given, results));
  return made;
}

}  // namespace pyquant::host
