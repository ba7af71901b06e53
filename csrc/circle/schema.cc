// SPDX-License-Identifier: Apache-2.0
// Checks the tables (ops.def, dtypes.def) against the schema at compile time, and has the schema's names.
#include "circle/schema.h"

#include <iterator>

#include "circle/dtype.h"
#include "circle/ir.h"
#include "circle/ops.h"
#include "circle_generated.h"

namespace pyquant::circle {
namespace {

namespace fb = ::circle;

#define PYQUANT_DTYPE(name, schema, value, letter, elements, bytes, lowest, highest) \
  static_assert(static_cast<int>(fb::TensorType::schema) == (value), #schema);
#include "circle/dtypes.def"
#undef PYQUANT_DTYPE

#define PYQUANT_TABLE(table, value) \
  static_assert(static_cast<int>(fb::BuiltinOptions::table) == (value), #table);
#define PYQUANT_FIELD(table, slot, field, FIELD, kind, initial) \
  static_assert(fb::table::VT_##FIELD == 4 + 2 * (slot), #table "." #field);
#define PYQUANT_OP(name, code, table, inputs, outputs, kind, dtypes, luci, onert) \
  static_assert(static_cast<int>(fb::BuiltinOperator::name) == (code), #name);
#include "circle/ops.def"

}  // namespace

std::string schema_op_name(int32_t code) {
  const char* name = "";
  for (const auto value : fb::EnumValuesBuiltinOperator()) {
    if (static_cast<int32_t>(value) == code) name = fb::EnumNameBuiltinOperator(value);
  }
  return *name ? name : "operator " + std::to_string(code);
}

std::string schema_options_name(uint8_t value) {
  const char* name = fb::EnumNameBuiltinOptions(static_cast<fb::BuiltinOptions>(value));
  return *name ? name : "options " + std::to_string(value);
}

std::string schema_details_name(uint8_t value) {
  const char* name = fb::EnumNameQuantizationDetails(static_cast<fb::QuantizationDetails>(value));
  return *name ? name : "details " + std::to_string(value);
}

std::string op_name(const Operator& op) {
  if (op.op) return op.op->name;
  std::string name = schema_op_name(op.code);
  if (!op.custom_code.empty()) name += "(" + op.custom_code + ")";
  return name;
}

std::string tensor_place(const Graph& graph, int64_t tensor) {
  std::string place = "tensors[" + std::to_string(tensor) + "]";
  if (graph.has_tensor(tensor)) place += " '" + graph.tensors[static_cast<size_t>(tensor)].name + "'";
  return place;
}

std::string operator_place(const Graph& graph, size_t op) {
  return "operators[" + std::to_string(op) + "] " + op_name(graph.operators[op]);
}

}  // namespace pyquant::circle
