// SPDX-License-Identifier: Apache-2.0
// Target onert: what onert 0.1.0 rejects, crashes on, or computes wrongly without an error, as measured
// (circle-and-runtimes.md, sections 2 and 3). Which dtypes each operator takes is in ops.def, the rules that
// need more than a dtype are in its row (csrc/circle/ops); here are those of whole files.
#include "circle/check/check.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

void check_operator(const Model& model, const Graph& graph, const Operator& op, const std::string& where,
                    Faults& faults) {
  const TargetCheck check(
      model, graph, op, [&](Code code, std::string message) { faults.add(code, where, std::move(message)); });
  const OpRow& row = row_of(*op.op);
  if (row.onert) return row.onert(check);
  if (op.op->onert.empty())
    return check.fault(Code::E_ONERT_OPERATOR, "is not supported; lower it to other operators");
  check.onert_dtypes();
}

void check_io(const Graph& graph, Faults& faults) {
  const auto look = [&](const std::vector<int32_t>& list) {
    for (int32_t index : list) {
      if (!graph.has_tensor(index)) continue;
      const Tensor& t = graph.tensors[static_cast<size_t>(index)];
      const DTypeInfo* type = info(t.dtype);
      const bool passes = type && std::string_view("filbua").find(type->letter) != std::string_view::npos;
      if (passes && t.shape.size() <= 6) continue;
      faults.add(Code::E_ONERT_IO, tensor_place(graph, index),
                 name_of(t.dtype) + " " + shape_text(t.shape) +
                     ": expected float32, int32, int64, bool, uint8 or int8 of rank 6 or less");
    }
  };
  look(graph.inputs);
  look(graph.outputs);
}

}  // namespace

void check_onert(const Model& model, const Graph& graph, Faults& faults) {
  for (size_t i = 0; i < model.buffers.size(); ++i) {
    if (!model.buffers[i].external) continue;
    faults.add(Code::E_ONERT_EXTERNAL, "buffers[" + std::to_string(i) + "]",
               "lies outside the flatbuffer, on which onert crashes; write with --layout inline");
    break;
  }
  if (model.graphs.size() > 1 && &graph != &model.graphs[0]) {
    faults.add(Code::E_ONERT_WRONG, "graph",
               "is not the first of the file, and onert runs the first only; write a file "
               "for each graph");
  }
  check_io(graph, faults);
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    const Operator& op = graph.operators[i];
    if (op.op) check_operator(model, graph, op, operator_place(graph, i), faults);
  }
}

}  // namespace pyquant::circle
