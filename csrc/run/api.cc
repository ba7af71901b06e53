// SPDX-License-Identifier: Apache-2.0
// pyquant/run.h over Program, Runner and Workspace: names, and memory for what goes in and out.
#include <cstdlib>
#include <cstring>

#include "pyquant/run.h"
#include "run/numbers.h"
#include "run/runner.h"

namespace pyquant {
namespace {

using run::Port;

constexpr size_t kAlignment = 64;

/// Memory of an input or output: zeros at first, aligned for every element.
class Block {
 public:
  Status resize(size_t bytes) {
    if (bytes == bytes_ && memory_) return {};
    memory_.reset();
    const size_t room = (bytes / kAlignment + 1) * kAlignment;
    memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, room)));
    bytes_ = memory_ ? bytes : 0;
    if (!memory_) {
      return Fault{Code::E_RUN_MEMORY, "the system has no block of " + std::to_string(room) + " bytes", ""};
    }
    std::memset(memory_.get(), 0, room);
    return {};
  }
  uint8_t* data() const { return memory_.get(); }
  size_t size() const { return bytes_; }

 private:
  struct Free {
    void operator()(uint8_t* block) const { std::free(block); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
  size_t bytes_ = 0;
};

TensorInfo info_of(const Port& port) {
  TensorInfo info{port.name, circle::name_of(port.tensor->dtype), port.shape, {}, {}, 0};
  if (port.tensor->quant) {
    info.scale = port.tensor->quant->scale;
    info.zero_point = port.tensor->quant->zero_point;
    info.axis = port.tensor->quant->axis;
  }
  return info;
}

Result<size_t> find(const std::vector<Port>& ports, const std::string& name, const std::string& where,
                    const char* side) {
  std::string names;
  for (size_t i = 0; i < ports.size(); ++i) {
    if (ports[i].name == name) return i;
    names += (i ? ", " : "") + ports[i].name;
  }
  return Fault{Code::E_RUN_INPUT, std::string("has no ") + side + " '" + name + "'; it has " + names, where};
}

}  // namespace

struct File::State {
  std::shared_ptr<const run::Program> program;
  std::shared_ptr<run::Workspace> workspace;
  FileOptions options;
};

struct Graph::State {
  State(std::shared_ptr<const run::Program> program, const std::shared_ptr<run::Workspace>& workspace,
        const FileOptions& options)
      : runner(std::move(program), workspace, {options.memory_limit}) {
    for (const Port& port : runner.inputs()) {
      inputs.push_back(info_of(port));
      shapes.push_back(port.shape);
    }
    for (const Port& port : runner.outputs()) outputs.push_back(info_of(port));
    own.resize(inputs.size());
    given.resize(inputs.size());
    results.resize(outputs.size());
  }

  std::string where(const std::string& tensor) const {
    return runner.program().name() + ", '" + tensor + "'";
  }

  // Bytes of input i as its shape stands; fails while dimensions are open.
  Result<size_t> bytes_of(size_t i) const {
    const auto bytes = circle::byte_size(runner.inputs()[i].tensor->dtype, shapes[i]);
    if (bytes) return static_cast<size_t>(*bytes);
    return Fault{Code::E_RUN_INPUT,
                 "is " + circle::shape_text(shapes[i]) + " with open dimensions; call set_shape first",
                 where(inputs[i].name)};
  }

  Status require(size_t i, size_t bytes) const {
    PYQUANT_TRY_ASSIGN(const size_t wanted, bytes_of(i));
    if (bytes == wanted) return {};
    return Fault{Code::E_RUN_INPUT,
                 "got " + std::to_string(bytes) + " bytes, expected " + std::to_string(wanted) + " for " +
                     inputs[i].dtype + " " + circle::shape_text(shapes[i]),
                 where(inputs[i].name)};
  }

  run::Runner runner;
  std::vector<TensorInfo> inputs, outputs;
  std::vector<run::Shape> shapes;   // of the inputs
  std::vector<Block> own, results;  // memory of inputs and outputs
  std::vector<const void*> given;   // where each input is
  bool ran = false;
};

Graph::Graph(std::unique_ptr<State> state) : state_(std::move(state)) {}
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;

const std::vector<TensorInfo>& Graph::inputs() const { return state_->inputs; }
const std::vector<TensorInfo>& Graph::outputs() const { return state_->outputs; }

Status Graph::set_shape(const std::string& input, const std::vector<int32_t>& shape) {
  State& s = *state_;
  PYQUANT_TRY_ASSIGN(const size_t i, find(s.runner.inputs(), input, s.runner.program().name(), "input"));
  const std::vector<int32_t>& declared = s.inputs[i].shape;
  bool fits = shape.size() == declared.size();
  for (size_t d = 0; fits && d < shape.size(); ++d) {
    fits = shape[d] >= 0 && (declared[d] < 0 || declared[d] == shape[d]);
  }
  if (!fits || !circle::element_count(shape)) {
    return Fault{Code::E_RUN_INPUT,
                 "got shape " + circle::shape_text(shape) + ", expected " + circle::shape_text(declared) +
                     " (-1: any)",
                 s.where(input)};
  }
  if (shape != s.shapes[i]) s.given[i] = nullptr;
  s.shapes[i] = shape;
  return {};
}

Status Graph::set_input(const std::string& name, const void* data, size_t bytes) {
  State& s = *state_;
  PYQUANT_TRY_ASSIGN(const size_t i, find(s.runner.inputs(), name, s.runner.program().name(), "input"));
  PYQUANT_TRY(s.require(i, bytes));
  PYQUANT_TRY(s.own[i].resize(bytes));
  if (bytes > 0) std::memcpy(s.own[i].data(), data, bytes);
  s.given[i] = s.own[i].data();
  return {};
}

Status Graph::set_input(const std::string& name, const float* values, size_t count) {
  State& s = *state_;
  PYQUANT_TRY_ASSIGN(const size_t i, find(s.runner.inputs(), name, s.runner.program().name(), "input"));
  const circle::Tensor& tensor = *s.runner.inputs()[i].tensor;
  if (tensor.dtype == circle::DType::FLOAT32) {
    return set_input(name, static_cast<const void*>(values), count * sizeof(float));
  }
  if (!run::has_numbers(tensor)) {
    return Fault{Code::E_RUN_INPUT, "is " + s.inputs[i].dtype + ", which takes no floats; give its own dtype",
                 s.where(name)};
  }
  PYQUANT_TRY_ASSIGN(const size_t bytes, s.bytes_of(i));
  const auto elements = static_cast<size_t>(*circle::element_count(s.shapes[i]));
  if (count != elements) {
    return Fault{Code::E_RUN_INPUT,
                 "got " + std::to_string(count) + " values, expected " + std::to_string(elements) + " for " +
                     circle::shape_text(s.shapes[i]),
                 s.where(name)};
  }
  PYQUANT_TRY(s.own[i].resize(bytes));
  run::to_integers(tensor, s.shapes[i], values, s.own[i].data());
  s.given[i] = s.own[i].data();
  return {};
}

Status Graph::bind_input(const std::string& name, const void* data, size_t bytes) {
  State& s = *state_;
  PYQUANT_TRY_ASSIGN(const size_t i, find(s.runner.inputs(), name, s.runner.program().name(), "input"));
  PYQUANT_TRY(s.require(i, bytes));
  if (bytes == 0) return set_input(name, data, 0);
  s.given[i] = data;
  return {};
}

Status Graph::run() {
  State& s = *state_;
  s.ran = false;
  for (size_t i = 0; i < s.inputs.size(); ++i) {
    if (!s.given[i])
      return Fault{Code::E_RUN_INPUT, "has no value; call set_input first", s.where(s.inputs[i].name)};
  }
  PYQUANT_TRY(s.runner.prepare(s.shapes));
  std::vector<void*> outputs;
  for (size_t k = 0; k < s.outputs.size(); ++k) {
    PYQUANT_TRY(s.results[k].resize(static_cast<size_t>(s.runner.output_bytes(k))));
    outputs.push_back(s.results[k].data());
  }
  PYQUANT_TRY(s.runner.run(s.given, outputs));
  s.ran = true;
  return {};
}

Result<std::vector<int32_t>> Graph::output_shape(const std::string& name) const {
  PYQUANT_TRY_ASSIGN(const size_t k,
                     find(state_->runner.outputs(), name, state_->runner.program().name(), "output"));
  if (!state_->ran)
    return Fault{Code::E_RUN_INPUT, "has no shape before the graph has run", state_->where(name)};
  return state_->runner.output_shape(k);
}

Result<const void*> Graph::output(const std::string& name, size_t* bytes) const {
  PYQUANT_TRY_ASSIGN(const size_t k,
                     find(state_->runner.outputs(), name, state_->runner.program().name(), "output"));
  if (!state_->ran)
    return Fault{Code::E_RUN_INPUT, "has no value before the graph has run", state_->where(name)};
  if (bytes) *bytes = state_->results[k].size();
  return static_cast<const void*>(state_->results[k].data());
}

Status Graph::get_output(const std::string& name, float* values, size_t count) const {
  State& s = *state_;
  PYQUANT_TRY_ASSIGN(const void* const data, output(name));
  PYQUANT_TRY_ASSIGN(const size_t k, find(s.runner.outputs(), name, s.runner.program().name(), "output"));
  const circle::Tensor& tensor = *s.runner.outputs()[k].tensor;
  const auto elements = static_cast<size_t>(*circle::element_count(s.runner.output_shape(k)));
  if (count != elements) {
    return Fault{Code::E_RUN_INPUT,
                 "has " + std::to_string(elements) + " values, got room for " + std::to_string(count),
                 s.where(name)};
  }
  if (tensor.dtype == circle::DType::FLOAT32) {
    if (count > 0) std::memcpy(values, data, count * sizeof(float));
    return {};
  }
  if (!run::has_numbers(tensor)) {
    return Fault{Code::E_RUN_INPUT,
                 "is " + s.outputs[k].dtype + ", which stands for no floats; take output()", s.where(name)};
  }
  run::to_floats(tensor, s.runner.output_shape(k), data, values);
  return {};
}

File::File(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Result<File> File::load(const std::string& path, const FileOptions& options) {
  PYQUANT_TRY_ASSIGN(auto program, run::Program::load(path));
  auto state = std::make_shared<State>();
  state->program = std::move(program);
  state->workspace = std::make_shared<run::Workspace>(options.threads);
  state->options = options;
  return File(std::move(state));
}

std::vector<std::string> File::signatures() const {
  std::vector<std::string> keys = state_->program->signatures();
  if (keys.empty()) keys.emplace_back();
  return keys;
}

Result<Graph> File::graph(const std::string& signature) const {
  PYQUANT_TRY_ASSIGN(auto program, state_->program->with_signature(signature));
  return Graph(std::make_unique<Graph::State>(std::move(program), state_->workspace, state_->options));
}

}  // namespace pyquant
