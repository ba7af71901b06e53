// SPDX-License-Identifier: Apache-2.0
#include "run/program.h"

#include <algorithm>
#include <map>

#include "pyquant/circle.h"

namespace pyquant::run {

using circle::Graph;
using circle::Model;
using circle::Signature;
using circle::Tensor;

Program::Program(std::shared_ptr<const Model> model, std::string name, size_t graph,
                 const Signature* signature)
    : model_(std::move(model)), name_(std::move(name)), graph_(graph) {
  inputs_ = ports(this->graph().inputs, signature ? &signature->inputs : nullptr);
  outputs_ = ports(this->graph().outputs, signature ? &signature->outputs : nullptr);
}

std::vector<Port> Program::ports(const std::vector<int32_t>& list,
                                 const std::vector<circle::NamedIndex>* names) const {
  std::vector<Port> found;
  for (int32_t t : list) {
    const Tensor& tensor = graph().tensors[static_cast<size_t>(t)];
    Port port{tensor.name, &tensor, static_cast<size_t>(t), tensor.shape};
    if (!tensor.shape_signature.empty()) port.shape = tensor.shape_signature;
    for (size_t i = 0; names && i < names->size(); ++i) {
      if ((*names)[i].second == static_cast<uint32_t>(t)) port.name = (*names)[i].first;
    }
    const auto named = [&port](const Port& other) { return other.name == port.name; };
    if (std::any_of(found.begin(), found.end(), named)) port.name += "#" + std::to_string(t);
    found.push_back(std::move(port));
  }
  return found;
}

std::vector<std::string> Program::signatures() const {
  std::vector<std::string> keys;
  for (const Signature& signature : model_->signatures) keys.push_back(signature.key);
  return keys;
}

Result<std::shared_ptr<const Program>> Program::of(std::shared_ptr<const Model> model,
                                                   const std::string& name, const std::string& signature) {
  std::string keys;
  for (const Signature& each : model->signatures) {
    // Without a key: the first graph, by the names that it has.
    if (signature.empty() ? each.subgraph == 0 : each.key == signature) {
      const std::string shown = signature.empty() ? name : name + " '" + signature + "'";
      return std::shared_ptr<const Program>(new Program(model, shown, each.subgraph, &each));
    }
    keys += (keys.empty() ? "" : ", ") + each.key;
  }
  if (signature.empty())
    return std::shared_ptr<const Program>(new Program(std::move(model), name, 0, nullptr));
  return Fault{Code::E_RUN_INPUT,
               "has no signature '" + signature + "'; it has " + (keys.empty() ? "none" : keys), name};
}

Result<std::shared_ptr<const Program>> Program::with_signature(const std::string& signature) const {
  return of(model_, name_, signature);
}

Result<std::shared_ptr<const Program>> Program::from_model(Model model, const std::string& name,
                                                           const std::string& signature) {
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
  return of(std::make_shared<const Model>(std::move(model)), name, signature);
}

Result<std::shared_ptr<const Program>> Program::operation(size_t op) const {
  if (op >= graph().operators.size()) {
    return Fault{
        Code::E_RUN_INPUT,
        "has no operator " + std::to_string(op) + "; there are " + std::to_string(graph().operators.size()),
        name_};
  }
  Model alone;
  alone.owners = model_->owners;
  alone.owners.push_back(model_);
  Graph& only = alone.graphs.emplace_back();
  circle::Operator copy = graph().operators[op];
  copy.opcode_index = 0;
  std::map<int32_t, int32_t> number;
  const auto take = [&](int32_t& t, bool output) {
    if (t < 0) return;
    const auto [entry, is_new] = number.try_emplace(t, static_cast<int32_t>(only.tensors.size()));
    if (is_new) {
      Tensor& tensor = only.tensors.emplace_back(graph().tensors[static_cast<size_t>(t)]);
      if (model_->is_constant(tensor)) {
        alone.buffers.push_back(model_->buffers[tensor.buffer]);
        tensor.buffer = static_cast<uint32_t>(alone.buffers.size() - 1);
      } else {
        tensor.buffer = 0;
        (output ? only.outputs : only.inputs).push_back(entry->second);
      }
    }
    t = entry->second;
  };
  for (int32_t& t : copy.inputs) take(t, false);
  for (int32_t& t : copy.outputs) take(t, true);
  only.operators.push_back(std::move(copy));
  return from_model(std::move(alone), name_ + ", " + operator_place(graph(), op));
}

Result<std::shared_ptr<const Program>> Program::load(const std::string& path, const std::string& signature) {
  PYQUANT_TRY_ASSIGN(Model model, circle::read_file(path));
  return from_model(std::move(model), path, signature);
}

Result<std::shared_ptr<const Program>> Program::from_bytes(circle::Bytes bytes, const std::string& name,
                                                           std::shared_ptr<const void> owner,
                                                           const std::string& signature) {
  PYQUANT_TRY_ASSIGN(Model model, circle::read_bytes(bytes, name, std::move(owner)));
  return from_model(std::move(model), name, signature);
}

}  // namespace pyquant::run
