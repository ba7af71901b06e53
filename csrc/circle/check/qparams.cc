// SPDX-License-Identifier: Apache-2.0
// Pass 6: quantization parameters: scales finite and positive, zero points in range, axis and count, present
// where needed.
#include <algorithm>
#include <cmath>

#include "circle/check/check.h"
#include "circle/schema.h"

namespace pyquant::circle {
namespace {

std::string number(float value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "infinity" : "-infinity";
  return std::to_string(value);
}

void check_values(const Tensor& t, const std::string& where, Faults& faults) {
  const QParams& q = *t.quant;
  const DTypeInfo& type = *info(t.dtype);
  for (size_t i = 0; i < q.scale.size(); ++i) {
    const bool finite = std::isfinite(q.scale[i]);
    if (finite && q.scale[i] > 0) continue;
    faults.add(finite ? Code::E_SCALE_NOT_POSITIVE : Code::E_SCALE_NOT_FINITE,
               where + ".scale[" + std::to_string(i) + "]",
               "is " + number(q.scale[i]) + ", expected " + (finite ? "more than 0" : "a finite number"));
    break;
  }
  for (size_t i = 0; i < q.zero_point.size(); ++i) {
    if (q.zero_point[i] >= type.lowest && q.zero_point[i] <= type.highest) continue;
    faults.add(Code::E_ZERO_POINT_RANGE, where + ".zero_point[" + std::to_string(i) + "]",
               "is " + std::to_string(q.zero_point[i]) + ", expected " + std::to_string(type.lowest) +
                   " to " + std::to_string(type.highest) + " for " + type.name);
    break;
  }
}

void check_axis(const Tensor& t, const std::string& where, Faults& faults) {
  const QParams& q = *t.quant;
  const auto rank = static_cast<int64_t>(t.shape.size());
  if (q.axis < 0 || q.axis >= std::max<int64_t>(rank, 1)) {
    faults.add(Code::E_AXIS_RANGE, where,
               "quantized_dimension is " + std::to_string(q.axis) + ", the tensor is " + shape_text(t.shape));
    return;
  }
  if (q.scale.size() <= 1) return;
  const auto axis = static_cast<size_t>(q.axis);
  if (axis < t.shape_signature.size() && t.shape_signature[axis] < 0) {
    faults.add(Code::E_AXIS_COUNT, where,
               "has a scale for each part of dimension " + std::to_string(q.axis) + ", which is dynamic");
    return;
  }
  const int64_t dim = rank == 0 ? 1 : t.shape[axis];
  if (static_cast<int64_t>(q.scale.size()) != dim) {
    faults.add(Code::E_AXIS_COUNT, where,
               "has " + std::to_string(q.scale.size()) + " scales, expected 1 or " + std::to_string(dim) +
                   ", dimension " + std::to_string(q.axis) + " of " + shape_text(t.shape));
  }
}

void check_tensor(const Graph& graph, size_t index, Faults& faults) {
  const Tensor& t = graph.tensors[index];
  if (!t.quant) return;
  const std::string where = tensor_place(graph, static_cast<int64_t>(index));
  if (t.quant->details != 0) {
    faults.add(Code::E_QPARAMS_DETAILS, where,
               "uses " + schema_details_name(t.quant->details) + ", expected scale and zero_point");
    return;
  }
  if (!is_quantized(t.dtype) && !is_index(t.dtype)) {
    faults.add(Code::E_QPARAMS_DTYPE, where,
               "is " + name_of(t.dtype) + " and has qparams, expected an integer type");
    return;
  }
  if (t.quant->scale.empty() || t.quant->scale.size() != t.quant->zero_point.size()) {
    faults.add(Code::E_SCALE_COUNT, where,
               "has " + std::to_string(t.quant->scale.size()) + " scales and " +
                   std::to_string(t.quant->zero_point.size()) + " zero points, expected one for one");
  }
  check_values(t, where, faults);
  check_axis(t, where, faults);
}

// Moves and casts may carry plain integers; whatever computes on an 8-bit tensor must know its scale.
void check_present(const Graph& graph, size_t index, std::vector<bool>& told, Faults& faults) {
  const Operator& op = graph.operators[index];
  const bool activates = option<int64_t>(op, "fused_activation_function", 0) != 0;
  if (op.op->kind != OpKind::Arith && op.op->kind != OpKind::Weighted && op.op->kind != OpKind::Convert &&
      !activates)
    return;
  if (std::string_view(op.op->name) == "CAST") return;
  const auto look = [&](int32_t t, char role, const std::string& operand) {
    if (!graph.has_tensor(t) || told[static_cast<size_t>(t)]) return;
    const Tensor& tensor = graph.tensors[static_cast<size_t>(t)];
    const Tensor* data = input(graph, op, 0);
    const bool integer_bias = role == 'b' && data && is_quantized(data->dtype);
    if ((!is_quantized(tensor.dtype) && !integer_bias) || tensor.quant) return;
    told[static_cast<size_t>(t)] = true;
    faults.add(Code::E_QPARAMS_MISSING, operator_place(graph, index),
               operand + " has no qparams, and " + op.op->name + " computes with it");
  };
  for (size_t i = 0; i < op.inputs.size(); ++i)
    look(op.inputs[i], op.op->input(i).role, input_text(graph, op, i));
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    look(op.outputs[i], op.op->output(i).role, output_text(graph, op, i));
  }
}

// int32 and int64 have a scale as biases; elsewhere they are plain integers. A bias may be moved, in its
// grid.
void check_plain(const Graph& graph, size_t index, Faults& faults) {
  const Operator& op = graph.operators[index];
  const bool move = op.op->kind == OpKind::Move, cast = op.op->kind == OpKind::Convert;
  const bool activates = option<int64_t>(op, "fused_activation_function", 0) != 0;
  const bool counts = std::any_of(op.op->outputs.begin(), op.op->outputs.end(),
                                  [](const Operand& o) { return o.role == 'i'; });
  const Tensor* first = nullptr;
  const auto look = [&](const Tensor* t, char role, bool is_output, const std::string& operand) {
    if (!t || !is_index(t->dtype) || cast) return;
    if (role != 'x' && !(role == 'i' && is_output) && role != 'a') return;
    if (!move || counts || activates) {
      if (t->quant)
        faults.add(Code::E_QPARAMS_DTYPE, operator_place(graph, index),
                   operand + " has qparams, expected plain integers here");
      return;
    }
    if (t->dtype != DType::INT64 || !t->quant) return;
    if (!first) first = t;
    if (t->quant->scale.size() == 1 && same_qparams(*t, *first)) return;
    faults.add(Code::E_QPARAMS_DTYPE, operator_place(graph, index),
               operand + " has " + qparams_text(*t) + ", expected one scale, and " + qparams_text(*first) +
                   " as the operands before it");
  };
  for (size_t i = 0; i < op.inputs.size(); ++i)
    look(input(graph, op, i), op.op->input(i).role, false, input_text(graph, op, i));
  for (size_t k = 0; k < op.outputs.size(); ++k)
    look(output(graph, op, k), op.op->output(k).role, true, output_text(graph, op, k));
}

}  // namespace

void check_qparams(const Model&, const Graph& graph, Faults& faults) {
  for (size_t i = 0; i < graph.tensors.size(); ++i) check_tensor(graph, i, faults);
  std::vector<bool> told(graph.tensors.size(), false);
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    if (!graph.operators[i].op) continue;
    check_present(graph, i, told, faults);
    check_plain(graph, i, faults);
  }
}

}  // namespace pyquant::circle
