// SPDX-License-Identifier: Apache-2.0
// Pass 7: the order of operators: every tensor is an input, a constant or produced once, and before it is
// used.
#include "circle/check/check.h"

namespace pyquant::circle {
namespace {

constexpr size_t kNobody = static_cast<size_t>(-1);

}  // namespace

void check_dataflow(const Model& model, const Graph& graph, Faults& faults) {
  std::vector<bool> is_input(graph.tensors.size(), false);
  std::vector<bool> ready(graph.tensors.size(), false);
  std::vector<bool> told(graph.tensors.size(), false);
  std::vector<size_t> producer(graph.tensors.size(), kNobody);
  for (size_t t = 0; t < graph.tensors.size(); ++t) ready[t] = model.is_constant(graph.tensors[t]);
  for (int32_t t : graph.inputs) {
    if (!graph.has_tensor(t)) continue;
    const auto index = static_cast<size_t>(t);
    if (ready[index]) {
      faults.add(Code::E_INPUT_IS_CONSTANT, tensor_place(graph, t), "is a graph input and has constant data");
    }
    is_input[index] = ready[index] = true;
  }
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    const Operator& op = graph.operators[i];
    const std::string where = operator_place(graph, i);
    for (size_t k = 0; k < op.inputs.size(); ++k) {
      if (!graph.has_tensor(op.inputs[k])) continue;
      const auto t = static_cast<size_t>(op.inputs[k]);
      if (ready[t] || told[t]) continue;
      told[t] = true;
      faults.add(
          Code::E_USED_BEFORE_PRODUCED, where,
          input_text(graph, op, k) + " is no graph input, no constant, and no earlier operator produces it");
    }
    for (size_t k = 0; k < op.outputs.size(); ++k) {
      if (!graph.has_tensor(op.outputs[k])) continue;
      const auto t = static_cast<size_t>(op.outputs[k]);
      const std::string what = output_text(graph, op, k);
      if (producer[t] != kNobody) {
        faults.add(Code::E_PRODUCED_TWICE, where,
                   what + " is produced by operators[" + std::to_string(producer[t]) + "] too");
      } else if (is_input[t]) {
        faults.add(Code::E_INPUT_WRITTEN, where, what + " is a graph input");
      } else if (model.is_constant(graph.tensors[t])) {
        faults.add(Code::E_CONSTANT_WRITTEN, where, what + " is a constant");
      }
      producer[t] = i;
      ready[t] = true;
    }
  }
  for (size_t i = 0; i < graph.outputs.size(); ++i) {
    const int32_t t = graph.outputs[i];
    if (!graph.has_tensor(t) || ready[static_cast<size_t>(t)]) continue;
    faults.add(Code::E_OUTPUT_NOT_PRODUCED, "outputs[" + std::to_string(i) + "]",
               tensor_place(graph, t) + " is produced by no operator");
  }
}

}  // namespace pyquant::circle
