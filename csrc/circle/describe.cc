// SPDX-License-Identifier: Apache-2.0
// The spelling of tensors, operators and options in JSON, as plan_parse.cc reads it.
#include "circle/describe.h"

#include <algorithm>
#include <cmath>

#include "circle/json.h"

namespace pyquant::circle {
namespace {

// JSON has no NaN or infinity; inspect shows them as text, and plans reject them before.
std::string float_json(float value) {
  if (std::isnan(value)) return "\"NaN\"";
  if (std::isinf(value)) return value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  std::string text;
  json::append_float(text, value);
  return text;
}

const char* spelling(FieldKind kind, int64_t value) {
  for (const EnumName& name : enum_names(kind)) {
    if (name.value == value) return name.name;
  }
  return nullptr;
}

std::string value_text(const Field& field, const OptionValue& value, bool json) {
  if (const bool* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const float* number = std::get_if<float>(&value)) return float_json(*number);
  if (const auto* list = std::get_if<std::vector<int32_t>>(&value)) return ints_json(*list);
  const int64_t number = std::get<int64_t>(value);
  const char* name = spelling(field.kind, number);
  if (!name) return std::to_string(number);
  return json ? quoted(name) : name;
}

std::string operands_json(const std::vector<Operand>& operands) {
  std::string out = "[";
  for (size_t i = 0; i < operands.size(); ++i) {
    const Operand& o = operands[i];
    out += (i ? ", " : "") + ("{\"role\": " + quoted(std::string(1, o.role))) +
           ", \"may_be_none\": " + (o.may_be_none ? "true" : "false") +
           ", \"may_be_absent\": " + (o.may_be_absent ? "true" : "false") +
           ", \"repeats\": " + (o.repeats ? "true" : "false") + "}";
  }
  return out + "]";
}

std::string options_json(const OptionsTable& table) {
  std::string out = "[";
  for (size_t i = 0; i < table.fields.size(); ++i) {
    const Field& field = table.fields[i];
    const auto& choices = enum_names(field.kind);
    std::string initial = std::to_string(field.initial);
    if (field.kind == FieldKind::Bool) initial = field.initial ? "true" : "false";
    if (field.kind == FieldKind::Ints) initial = "[]";
    if (const char* name = spelling(field.kind, field.initial)) initial = quoted(name);
    out += (i ? ", " : "") + ("{\"name\": " + quoted(field.name)) +
           ", \"type\": " + quoted(kind_name(field.kind)) + ", \"default\": " + initial + ", \"choices\": [";
    for (size_t k = 0; k < choices.size(); ++k) out += (k ? ", " : "") + quoted(choices[k].name);
    out += "]}";
  }
  return out + "]";
}

std::string letters_json(std::string_view letters, const char* (*name)(char)) {
  std::string out = "[";
  for (size_t i = 0; i < letters.size(); ++i) out += (i ? ", " : "") + quoted(name(letters[i]));
  return out + "]";
}

const char* dtype_name(char letter) {
  const DTypeInfo* type = dtype_by_letter(letter);
  return type ? type->name : "?";
}

const char* family_name(char letter) {
  return letter == 'f' ? "float" : letter == 'q' ? "quantized" : letter == 'i' ? "index" : "bool";
}

}  // namespace

std::string quoted(std::string_view text) {
  std::string out;
  json::append_quoted(out, text);
  return out;
}

std::string operators_json() {
  std::string out = "[";
  for (const OpInfo& op : all_ops()) {
    out += (out.size() > 1 ? ",\n" : "") + ("{\"name\": " + quoted(op.name)) +
           ", \"code\": " + std::to_string(op.code) + ", \"kind\": " + quoted(kind_name(op.kind)) +
           ", \"options_table\": " + quoted(op.options->name) +
           ", \"options\": " + options_json(*op.options) + ", \"inputs\": " + operands_json(op.inputs) +
           ", \"outputs\": " + operands_json(op.outputs) +
           ", \"dtypes\": " + letters_json(op.dtypes, family_name) +
           ", \"onert\": " + letters_json(op.onert, dtype_name) + "}";
  }
  return out + "]";
}

std::string ints_json(const std::vector<int32_t>& values) { return shape_text(values); }

std::string option_text(const Field& field, const OptionValue& value) {
  return value_text(field, value, false);
}
std::string option_json(const Field& field, const OptionValue& value) {
  return value_text(field, value, true);
}

std::string tensor_json_open(const Tensor& tensor) {
  std::string out = "{\"name\": " + quoted(tensor.name) + ", \"dtype\": " + quoted(name_of(tensor.dtype)) +
                    ", \"shape\": " + ints_json(tensor.shape);
  if (!tensor.shape_signature.empty()) out += ", \"shape_signature\": " + ints_json(tensor.shape_signature);
  if (tensor.quant) {
    out += ", \"quant\": {\"scale\": [";
    for (size_t i = 0; i < tensor.quant->scale.size(); ++i) {
      out += (i ? ", " : "") + float_json(tensor.quant->scale[i]);
    }
    out += "], \"zero_point\": [";
    for (size_t i = 0; i < tensor.quant->zero_point.size(); ++i) {
      out += (i ? ", " : "") + std::to_string(tensor.quant->zero_point[i]);
    }
    out += "], \"axis\": " + std::to_string(tensor.quant->axis) + "}";
  }
  return out;
}

std::string operator_json(const Operator& op) {
  std::string out = "{\"op\": " + quoted(op_name(op)) + ", \"inputs\": " + ints_json(op.inputs) +
                    ", \"outputs\": " + ints_json(op.outputs);
  for (size_t i = 0; i < op.options.size(); ++i) {
    const Field& field = op.op->options->fields[i];
    out += (i ? ", " : ", \"options\": {") + quoted(field.name) + ": " + option_json(field, op.options[i]);
  }
  return out + (op.options.empty() ? "}" : "}}");
}

std::string named_json(const std::vector<NamedIndex>& entries) {
  std::string out = "{";
  for (size_t i = 0; i < entries.size(); ++i) {
    out += (i ? ", " : "") + quoted(entries[i].first) + ": " + std::to_string(entries[i].second);
  }
  return out + "}";
}

std::string UniqueNames::of(const std::string& name) {
  std::string key = name;
  for (int& n = next_[name]; !taken_.insert(key).second;) {
    n = std::max(n + 1, 2);
    key = name + "#" + std::to_string(n);
  }
  return key;
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xc2 && lead < 0xe0 ? 2
                          : lead >= 0xe0 && lead < 0xf0 ? 3
                                                        : 4;
    if (length == 4 && (lead < 0xf0 || lead > 0xf4)) return false;
    if (i + length > text.size()) return false;
    uint32_t point = length == 1 ? lead : lead & (0x7f >> length);
    for (size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      point = point << 6 | (next & 0x3f);
    }
    const bool too_long =
        (length == 3 && point < 0x800) || (length == 4 && (point < 0x10000 || point > 0x10ffff));
    if (too_long || (point >= 0xd800 && point < 0xe000)) return false;
    i += length;
  }
  return true;
}

}  // namespace pyquant::circle
