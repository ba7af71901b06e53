// SPDX-License-Identifier: Apache-2.0
// One operator of a plan: its name, operands and options, by ops.def.
#include "circle/plan_reader.h"

namespace pyquant::circle {

using json::Kind;
using json::Value;

namespace {

std::vector<OptionValue> defaults(const OptionsTable& table) {
  std::vector<OptionValue> values;
  for (const Field& field : table.fields) {
    switch (field.kind) {
      case FieldKind::Bool:
        values.emplace_back(field.initial != 0);
        break;
      case FieldKind::Float:
        values.emplace_back(static_cast<float>(field.initial));
        break;
      case FieldKind::Ints:
        values.emplace_back(std::vector<int32_t>());
        break;
      default:
        values.emplace_back(static_cast<int64_t>(field.initial));
    }
  }
  return values;
}

}  // namespace

Status PlanReader::operation(const Value& value, const std::string& path, Operator& op) const {
  PYQUANT_TRY(expect(value, Kind::Object, path));
  PYQUANT_TRY(keys(value, path, {"op", "inputs", "outputs", "options"}, {"op", "inputs", "outputs"}));
  const Value& name = *value.find("op");
  PYQUANT_TRY(expect(name, Kind::String, path + ".op"));
  op.op = op_by_name(name.text);
  if (!op.op) {
    return bad(Code::E_PLAN_OPERATOR, name, path + ".op",
               "operator '" + name.text + "' is not in ops.def; lower to one that is, or add it there");
  }
  op.code = op.op->code;
  op.options_type = op.op->options->value;
  op.has_options = op.options_type != 0;
  PYQUANT_TRY(ints(*value.find("inputs"), path + ".inputs", op.inputs));
  PYQUANT_TRY(ints(*value.find("outputs"), path + ".outputs", op.outputs));
  op.options = defaults(*op.op->options);
  if (const Value* options = value.find("options")) {
    PYQUANT_TRY(expect(*options, Kind::Object, path + ".options"));
    for (size_t i = 0; i < options->keys.size(); ++i) {
      PYQUANT_TRY(option(options->items[i], path + ".options." + options->keys[i], options->keys[i], op));
    }
  }
  return {};
}

Status PlanReader::option(const Value& value, const std::string& path, const std::string& key,
                          Operator& op) const {
  const int index = op.op->option(key);
  if (index < 0) {
    std::string list;
    for (const Field& field : op.op->options->fields)
      list += (list.empty() ? "" : ", ") + std::string(field.name);
    return bad(
        Code::E_PLAN_OPTION, value, path,
        std::string(op.op->name) + " has no option '" + key + "'; it has " + (list.empty() ? "none" : list));
  }
  OptionValue& out = op.options[static_cast<size_t>(index)];
  const FieldKind kind = op.op->options->fields[static_cast<size_t>(index)].kind;
  if (kind == FieldKind::Bool) {
    PYQUANT_TRY(expect(value, Kind::Bool, path));
    out = value.boolean;
    return {};
  }
  if (kind == FieldKind::Ints) return ints(value, path, std::get<std::vector<int32_t>>(out));
  if (kind == FieldKind::Float) {
    PYQUANT_TRY(expect(value, Kind::Number, path));
    if (value.as_float(std::get<float>(out))) return {};
    return bad(Code::E_PLAN_VALUE, value, path, "saw " + value.text + ", which float32 cannot hold");
  }
  if (kind == FieldKind::Int) {
    int32_t narrow = 0;
    PYQUANT_TRY(int32(value, path, narrow));
    out = static_cast<int64_t>(narrow);
    return {};
  }
  PYQUANT_TRY(expect(value, Kind::String, path));
  std::string list;
  for (const EnumName& name : enum_names(kind)) {
    if (value.text == name.name) {
      out = static_cast<int64_t>(name.value);
      return {};
    }
    list += (list.empty() ? "" : ", ") + std::string(name.name);
  }
  return bad(Code::E_PLAN_OPTION, value, path, "saw '" + value.text + "', expected one of " + list);
}

}  // namespace pyquant::circle
