// SPDX-License-Identifier: Apache-2.0
// Expands ops.def into the tables that ops.h describes, once, on first use.
#include "circle/ops.h"

#include <algorithm>
#include <limits>

#include "circle/dtype.h"

namespace pyquant::circle {
namespace {

std::vector<Operand> operands(std::string_view text) {
  std::vector<Operand> list;
  for (char c : text) {
    if (c == '?') {
      list.back().may_be_none = true;
    } else if (c == '-') {
      list.back().may_be_absent = true;
    } else if (c == '*') {
      list.back().repeats = true;
    } else {
      list.push_back({c, false, false, false});
    }
  }
  return list;
}

size_t fewest(const std::vector<Operand>& list) {
  return static_cast<size_t>(
      std::count_if(list.begin(), list.end(), [](const Operand& o) { return !o.may_be_absent; }));
}

size_t most(const std::vector<Operand>& list) {
  return !list.empty() && list.back().repeats ? std::numeric_limits<size_t>::max() : list.size();
}

// The rows of ops.def as plain constants; a loop makes them into what ops.h promises, which compiles quickly.
struct TableRow {
  const char* name;
  uint8_t value;
};
struct FieldRow {
  const char* table;
  Field field;
};
struct OpRow {
  const char* name;
  int32_t code;
  const char* table;
  const char* inputs;
  const char* outputs;
  OpKind kind;
  const char* dtypes;
  LuciRule luci;
  const char* onert;
};

constexpr TableRow kTables[] = {
#define PYQUANT_TABLE(table, value) {#table, value},
#include "circle/ops.def"
};
constexpr FieldRow kFields[] = {
#define PYQUANT_FIELD(table, slot, field, FIELD, kind, initial) \
  {#table, {#field, slot, FieldKind::kind, initial}},
#include "circle/ops.def"
};
constexpr OpRow kOps[] = {
#define PYQUANT_OP(name, code, table, inputs, outputs, kind, dtypes, luci, onert) \
  {#name, code, #table, inputs, outputs, OpKind::kind, dtypes, LuciRule::luci, onert},
#include "circle/ops.def"
};

const std::vector<OptionsTable>& all_tables() {
  static const std::vector<OptionsTable> tables = [] {
    std::vector<OptionsTable> list;
    for (const TableRow& row : kTables) list.push_back({row.name, row.value, {}});
    for (const FieldRow& row : kFields) {
      for (OptionsTable& table : list) {
        if (std::string_view(table.name) == row.table) table.fields.push_back(row.field);
      }
    }
    return list;
  }();
  return tables;
}

const OptionsTable* table_by_name(std::string_view name) {
  for (const OptionsTable& table : all_tables()) {
    if (name == table.name) return &table;
  }
  return nullptr;
}

}  // namespace

size_t OpInfo::min_inputs() const { return fewest(inputs); }
size_t OpInfo::max_inputs() const { return most(inputs); }
size_t OpInfo::min_outputs() const { return fewest(outputs); }
size_t OpInfo::max_outputs() const { return most(outputs); }

int OpInfo::option(std::string_view field) const {
  for (size_t i = 0; i < options->fields.size(); ++i) {
    if (field == options->fields[i].name) return static_cast<int>(i);
  }
  return -1;
}

const std::vector<OpInfo>& all_ops() {
  static const std::vector<OpInfo> ops = [] {
    std::vector<OpInfo> list;
    for (const OpRow& row : kOps) {
      list.push_back({row.name, row.code, table_by_name(row.table), operands(row.inputs),
                      operands(row.outputs), row.kind, row.dtypes, row.luci, row.onert});
    }
    return list;
  }();
  return ops;
}

const OpInfo* op_by_name(std::string_view name) {
  for (const OpInfo& op : all_ops()) {
    if (name == op.name) return &op;
  }
  return nullptr;
}

const OpInfo* op_by_code(int32_t code) {
  for (const OpInfo& op : all_ops()) {
    if (code == op.code) return &op;
  }
  return nullptr;
}

const std::vector<EnumName>& enum_names(FieldKind kind) {
  static const std::vector<EnumName> none;
  static const std::vector<EnumName> activation = {{"NONE", 0},  {"RELU", 1}, {"RELU_N1_TO_1", 2},
                                                   {"RELU6", 3}, {"TANH", 4}, {"SIGN_BIT", 5}};
  static const std::vector<EnumName> padding = {{"SAME", 0}, {"VALID", 1}};
  static const std::vector<EnumName> weights = {
      {"DEFAULT", 0}, {"SHUFFLED4x16INT8", 1}, {"SHUFFLED16x1FLOAT32", 127}};
  static const std::vector<EnumName> rope = {{"GPT_NEOX", 0}, {"GPT_J", 1}};
  static const std::vector<EnumName> types = {
#define PYQUANT_DTYPE(name, schema, value, letter, elements, bytes, lowest, highest) {#schema, value},
#include "circle/dtypes.def"
#undef PYQUANT_DTYPE
  };
  switch (kind) {
    case FieldKind::Activation:
      return activation;
    case FieldKind::Padding:
      return padding;
    case FieldKind::WeightsFormat:
      return weights;
    case FieldKind::RoPEMode:
      return rope;
    case FieldKind::Type:
      return types;
    default:
      return none;
  }
}

const char* kind_name(FieldKind kind) {
  static const char* const names[] = {
      "bool",    "int",           "float",      "ints",    "ActivationFunctionType",
      "Padding", "WeightsFormat", "TensorType", "RoPEMode"};
  return names[static_cast<size_t>(kind)];
}

const char* kind_name(OpKind kind) {
  static const char* const names[] = {"arith", "move", "weighted", "compare", "index", "convert"};
  return names[static_cast<size_t>(kind)];
}

}  // namespace pyquant::circle
