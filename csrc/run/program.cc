// SPDX-License-Identifier: Apache-2.0
#include "run/program.h"

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
