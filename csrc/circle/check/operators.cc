// SPDX-License-Identifier: Apache-2.0
// Pass 2: each operator's code, options table, number of operands and indices, against ops.def.
#include <algorithm>
#include <limits>

#include "circle/check/check.h"
#include "circle/schema.h"

namespace pyquant::circle {
namespace {

void check_code(const Model& model, const Operator& op, const std::string& where, Faults& faults) {
  if (!model.from_file) return;
  if (op.opcode_index >= model.operator_codes.size()) {
    faults.add(Code::E_OPCODE_INDEX, where,
               "operator code " + std::to_string(op.opcode_index) + " does not exist; there are " +
                   std::to_string(model.operator_codes.size()));
    return;
  }
  const OperatorCode& code = model.operator_codes[op.opcode_index];
  const int expected = std::min(op.code, 127);
  if (code.deprecated != expected) {
    faults.add(Code::E_OPCODE_FIELDS, where,
               "deprecated_builtin_code is " + std::to_string(code.deprecated) + ", builtin_code " +
                   std::to_string(code.builtin) + "; expected " + std::to_string(expected) +
                   " in the first (onert reads it, and reads this as another operator)");
  }
}

void check_options_table(const Operator& op, const std::string& where, Faults& faults) {
  const OptionsTable& table = *op.op->options;
  // A table without fields has no data, and TICO leaves that of GREATER out.
  if (table.fields.empty() && op.options_type == 0) return;
  if (op.options_type != table.value) {
    if (op.options_type == 0) {
      faults.add(Code::E_OPTIONS_MISSING, where, std::string("has no options, expected ") + table.name);
    } else {
      faults.add(Code::E_OPTIONS_TYPE, where,
                 "has " + schema_options_name(op.options_type) + ", expected " + table.name);
    }
  } else if (table.value != 0 && !op.has_options) {
    faults.add(Code::E_OPTIONS_MISSING, where, std::string("has no options, expected ") + table.name);
  }
}

std::string range_text(size_t fewest, size_t most) {
  if (most == std::numeric_limits<size_t>::max()) return std::to_string(fewest) + " or more";
  return fewest == most ? std::to_string(fewest) : std::to_string(fewest) + " to " + std::to_string(most);
}

void check_counts(const Operator& op, const std::string& where, Faults& faults) {
  const OpInfo& info = *op.op;
  if (op.inputs.size() < info.min_inputs() || op.inputs.size() > info.max_inputs()) {
    faults.add(Code::E_INPUT_COUNT, where,
               "has " + std::to_string(op.inputs.size()) + " inputs, expected " +
                   range_text(info.min_inputs(), info.max_inputs()) + " (a missing bias is written as -1)");
  }
  if (op.outputs.size() < info.min_outputs() || op.outputs.size() > info.max_outputs()) {
    faults.add(Code::E_OUTPUT_COUNT, where,
               "has " + std::to_string(op.outputs.size()) + " outputs, expected " +
                   range_text(info.min_outputs(), info.max_outputs()));
  }
}

void check_indices(const Graph& graph, const Operator& op, const std::string& where, Faults& faults) {
  const auto look = [&](const std::vector<int32_t>& list, const char* side, bool is_input) {
    for (size_t i = 0; i < list.size(); ++i) {
      if (graph.has_tensor(list[i])) continue;
      const std::string place = where + ", " + side + " " + std::to_string(i);
      if (list[i] != -1) {
        faults.add(Code::E_TENSOR_INDEX, place,
                   "tensor " + std::to_string(list[i]) + " does not exist; there are " +
                       std::to_string(graph.tensors.size()) + " tensors");
      } else if (!is_input || (op.op && !op.op->input(i).may_be_none)) {
        faults.add(Code::E_OPERAND_MISSING, place, "is -1 (none), but it is not optional");
      }
    }
  };
  look(op.inputs, "input", true);
  look(op.outputs, "output", false);
}

}  // namespace

void check_operators(const Model& model, const Graph& graph, Faults& faults) {
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    const Operator& op = graph.operators[i];
    const std::string where = operator_place(graph, i);
    check_code(model, op, where, faults);
    check_indices(graph, op, where, faults);
    if (!op.op) {
      if (!model.from_file || op.opcode_index < model.operator_codes.size()) {
        faults.add(Code::E_OPERATOR_UNKNOWN, where, "is not in ops.def, so its operands cannot be checked");
      }
      continue;
    }
    check_options_table(op, where, faults);
    check_counts(op, where, faults);
  }
}

}  // namespace pyquant::circle
