// SPDX-License-Identifier: Apache-2.0
#include "run/program.h"

#include <map>

#include "pyquant/circle.h"

namespace pyquant::run {

using circle::Model;
using circle::Tensor;

Program::Program(Model model, std::string name) : model_(std::move(model)), name_(std::move(name)) {
  inputs_ = ports(model_.inputs, true);
  outputs_ = ports(model_.outputs, false);
}

std::vector<Port> Program::ports(const std::vector<int32_t>& list, bool inputs) const {
  std::vector<Port> found;
  for (int32_t t : list) {
    const Tensor& tensor = model_.tensors[static_cast<size_t>(t)];
    Port port{tensor.name, &tensor, static_cast<size_t>(t), tensor.shape};
    if (!tensor.shape_signature.empty()) port.shape = tensor.shape_signature;
    if (!model_.signatures.empty()) {
      const circle::Signature& signature = model_.signatures[0];
      for (const auto& [name, index] : inputs ? signature.inputs : signature.outputs) {
        if (index == static_cast<uint32_t>(t)) port.name = name;
      }
    }
    found.push_back(std::move(port));
  }
  return found;
}

Result<std::shared_ptr<const Program>> Program::from_model(Model model, const std::string& name) {
  std::vector<Fault> faults = circle::check(model, circle::Target::Circle);
  if (!faults.empty()) {
    Fault first = std::move(faults[0]);
    if (faults.size() > 1) first.message += " (and " + std::to_string(faults.size() - 1) + " more faults)";
    first.where = name + ", " + first.where;
    return first;
  }
  for (size_t i = 1; i < model.buffers.size(); ++i) {
    if (model.buffers[i].bytes.size == 0 || model.buffers[i].bytes.data) continue;
    return Fault{Code::E_CONSTANT_INDEX, "no bytes were bound to it",
                 name + ", buffers[" + std::to_string(i) + "]"};
  }
  return std::shared_ptr<const Program>(new Program(std::move(model), name));
}

Result<std::shared_ptr<const Program>> Program::operation(size_t op) const {
  if (op >= model_.operators.size()) {
    return Fault{
        Code::E_RUN_INPUT,
        "has no operator " + std::to_string(op) + "; there are " + std::to_string(model_.operators.size()),
        name_};
  }
  Model alone;
  alone.owners = model_.owners;
  circle::Operator copy = model_.operators[op];
  copy.opcode_index = 0;
  std::map<int32_t, int32_t> number;
  const auto take = [&](int32_t& t, bool output) {
    if (t < 0) return;
    const auto [entry, is_new] = number.try_emplace(t, static_cast<int32_t>(alone.tensors.size()));
    if (is_new) {
      Tensor& tensor = alone.tensors.emplace_back(model_.tensors[static_cast<size_t>(t)]);
      if (model_.is_constant(static_cast<size_t>(t))) {
        alone.buffers.push_back(model_.buffers[tensor.buffer]);
        tensor.buffer = static_cast<uint32_t>(alone.buffers.size() - 1);
      } else {
        tensor.buffer = 0;
        (output ? alone.outputs : alone.inputs).push_back(entry->second);
      }
    }
    t = entry->second;
  };
  for (int32_t& t : copy.inputs) take(t, false);
  for (int32_t& t : copy.outputs) take(t, true);
  alone.operators.push_back(std::move(copy));
  return from_model(std::move(alone), name_ + ", " + operator_place(model_, op));
}

Result<std::shared_ptr<const Program>> Program::load(const std::string& path) {
  PYQUANT_TRY_ASSIGN(Model model, circle::read_file(path));
  return from_model(std::move(model), path);
}

Result<std::shared_ptr<const Program>> Program::from_bytes(circle::Bytes bytes, const std::string& name,
                                                           std::shared_ptr<const void> owner) {
  PYQUANT_TRY_ASSIGN(Model model, circle::read_bytes(bytes, name, std::move(owner)));
  return from_model(std::move(model), name);
}

}  // namespace pyquant::run
