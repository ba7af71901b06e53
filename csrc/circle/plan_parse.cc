// SPDX-License-Identifier: Apache-2.0
// Plan text to Model. Strict: an unknown key, a wrong type or a spelling that the schema does not have is an
// error that says line, column and path; nothing is guessed.
#include <algorithm>
#include <initializer_list>
#include <limits>
#include <map>

#include "circle/json.h"
#include "circle/plan.h"

namespace pyquant::circle {
namespace {

using json::Kind;
using json::Value;

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

class PlanParser {
 public:
  /// `what` names the text in messages, and outlives this.
  explicit PlanParser(const std::string& what) : what_(what) {}

  Result<Plan> plan(const Value& root) {
    PYQUANT_TRY(expect(root, Kind::Object, "plan"));
    PYQUANT_TRY(header(root));
    Model& model = plan_.model;
    if (const Value* graphs = root.find("graphs")) {
      PYQUANT_TRY(keys(root, "plan", {"format", "version", "description", "metadata", "graphs"}, {"graphs"}));
      PYQUANT_TRY(expect(*graphs, Kind::Array, "graphs"));
      for (size_t i = 0; i < graphs->items.size(); ++i) {
        const std::string path = "graphs[" + std::to_string(i) + "]";
        PYQUANT_TRY(expect(graphs->items[i], Kind::Object, path));
        PYQUANT_TRY(keys(graphs->items[i], path,
                         {"name", "tensors", "operators", "inputs", "outputs", "signature"},
                         {"tensors", "operators", "inputs", "outputs"}));
        PYQUANT_TRY(graph(graphs->items[i], path, path + "."));
      }
    } else {
      // One graph stands in the plan itself.
      PYQUANT_TRY(keys(root, "plan",
                       {"format", "version", "name", "description", "metadata", "tensors", "operators",
                        "inputs", "outputs", "signature", "graphs"},
                       {"tensors", "operators", "inputs", "outputs"}));
      PYQUANT_TRY(graph(root, "plan", ""));
    }
    PYQUANT_TRY(text(root, "plan", "description", model.description));
    if (const Value* value = root.find("metadata")) PYQUANT_TRY(metadata(*value));
    return std::move(plan_);
  }

 private:
  // `path` names the object in messages, `prefix` stands before what is in it.
  Status graph(const Value& value, const std::string& path, const std::string& prefix) {
    graph_ = plan_.model.graphs.size();
    plan_.model.graphs.emplace_back();
    PYQUANT_TRY(text(value, path, "name", here().name));
    const Value& tensors = *value.find("tensors");
    PYQUANT_TRY(expect(tensors, Kind::Array, prefix + "tensors"));
    for (size_t i = 0; i < tensors.items.size(); ++i) {
      PYQUANT_TRY(tensor(tensors.items[i], prefix + "tensors[" + std::to_string(i) + "]"));
    }
    const Value& operators = *value.find("operators");
    PYQUANT_TRY(expect(operators, Kind::Array, prefix + "operators"));
    for (size_t i = 0; i < operators.items.size(); ++i) {
      Operator& op = here().operators.emplace_back();
      PYQUANT_TRY(operation(operators.items[i], prefix + "operators[" + std::to_string(i) + "]", op));
    }
    PYQUANT_TRY(ints(*value.find("inputs"), prefix + "inputs", here().inputs));
    PYQUANT_TRY(ints(*value.find("outputs"), prefix + "outputs", here().outputs));
    if (const Value* names = value.find("signature")) PYQUANT_TRY(signature(*names, prefix + "signature"));
    return {};
  }

  Graph& here() { return plan_.model.graphs[graph_]; }

  // ---- JSON values to C++ values, each with the error that says what was seen, expected, and where

  Fault bad(Code code, const Value& at, const std::string& path, const std::string& message) const {
    return {code, message, what_ + ", " + at.place() + ", " + path};
  }

  Status expect(const Value& value, Kind kind, const std::string& path) const {
    if (value.kind == kind) return {};
    return bad(Code::E_PLAN_TYPE, value, path,
               std::string("saw ") + json::kind_name(value.kind) + ", expected " + json::kind_name(kind));
  }

  // Only `known` keys, and all `required` ones.
  Status keys(const Value& value, const std::string& path, std::initializer_list<const char*> known,
              std::initializer_list<const char*> required) const {
    for (const std::string& key : value.keys) {
      const auto is_key = [&key](const char* name) { return key == name; };
      if (std::any_of(known.begin(), known.end(), is_key)) continue;
      std::string list;
      for (const char* name : known) list += (list.empty() ? "" : ", ") + std::string(name);
      return bad(Code::E_PLAN_KEY, *value.find(key), path,
                 "unknown key '" + key + "', expected one of " + list);
    }
    for (const char* name : required) {
      if (!value.find(name)) {
        return bad(Code::E_PLAN_KEY, value, path, "key '" + std::string(name) + "' is missing");
      }
    }
    return {};
  }

  // A string, left as it is when the key is absent.
  Status text(const Value& object, const std::string& path, const char* key, std::string& out) const {
    const Value* value = object.find(key);
    if (!value) return {};
    PYQUANT_TRY(expect(*value, Kind::String, path + "." + key));
    out = value->text;
    return {};
  }

  Status int32(const Value& value, const std::string& path, int32_t& out) const {
    int64_t wide = 0;
    PYQUANT_TRY(expect(value, Kind::Number, path));
    if (!value.as_int(wide) || wide < std::numeric_limits<int32_t>::min() ||
        wide > std::numeric_limits<int32_t>::max()) {
      return bad(Code::E_PLAN_VALUE, value, path, "saw " + value.text + ", expected an integer of 32 bits");
    }
    out = static_cast<int32_t>(wide);
    return {};
  }

  Status ints(const Value& value, const std::string& path, std::vector<int32_t>& out) const {
    PYQUANT_TRY(expect(value, Kind::Array, path));
    out.resize(value.items.size());
    for (size_t i = 0; i < out.size(); ++i) {
      PYQUANT_TRY(int32(value.items[i], path + "[" + std::to_string(i) + "]", out[i]));
    }
    return {};
  }

  // ---- operators, by ops.def

  // One operator with all its options; those that the text leaves out have the schema's defaults.
  Status operation(const Value& value, const std::string& path, Operator& op) const {
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

  Status option(const Value& value, const std::string& path, const std::string& key, Operator& op) const {
    const int index = op.op->option(key);
    if (index < 0) {
      std::string list;
      for (const Field& field : op.op->options->fields)
        list += (list.empty() ? "" : ", ") + std::string(field.name);
      return bad(Code::E_PLAN_OPTION, value, path,
                 std::string(op.op->name) + " has no option '" + key + "'; it has " +
                     (list.empty() ? "none" : list));
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
      return bad(Code::E_PLAN_VALUE, value, path, "saw " + value.text + ", which float32 cannot represent");
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

  // ---- the rest of a plan

  Status header(const Value& root) const {
    const Value* format = root.find("format");
    const Value* version = root.find("version");
    if (!format || format->kind != Kind::String || format->text != "pyquant-plan") {
      return bad(Code::E_PLAN_FORMAT, format ? *format : root, "format",
                 "not a plan: expected \"format\": \"pyquant-plan\"");
    }
    if (!version || version->kind != Kind::Number || version->text != "1") {
      return bad(Code::E_PLAN_FORMAT, version ? *version : root, "version",
                 "saw version " + (version && version->kind == Kind::Number ? version->text : "none") +
                     ", expected 1; write the plan with this release");
    }
    return {};
  }

  Status tensor(const Value& value, const std::string& path) {
    PYQUANT_TRY(expect(value, Kind::Object, path));
    PYQUANT_TRY(keys(value, path, {"name", "dtype", "shape", "shape_signature", "quant", "constant"},
                     {"name", "dtype", "shape"}));
    Tensor tensor;
    PYQUANT_TRY(text(value, path, "name", tensor.name));
    const Value& dtype = *value.find("dtype");
    PYQUANT_TRY(expect(dtype, Kind::String, path + ".dtype"));
    const DTypeInfo* type = dtype_by_name(dtype.text);
    if (!type) {
      return bad(Code::E_PLAN_DTYPE, dtype, path + ".dtype",
                 "saw dtype '" + dtype.text + "', expected one of " + dtype_names());
    }
    tensor.dtype = type->dtype;
    PYQUANT_TRY(ints(*value.find("shape"), path + ".shape", tensor.shape));
    if (const Value* dims = value.find("shape_signature")) {
      PYQUANT_TRY(ints(*dims, path + ".shape_signature", tensor.shape_signature));
    }
    if (const Value* quant = value.find("quant")) PYQUANT_TRY(qparams(*quant, path + ".quant", tensor));
    if (const Value* data = value.find("constant")) PYQUANT_TRY(constant(*data, path + ".constant", tensor));
    here().tensors.push_back(std::move(tensor));
    return {};
  }

  Status qparams(const Value& value, const std::string& path, Tensor& tensor) const {
    PYQUANT_TRY(expect(value, Kind::Object, path));
    PYQUANT_TRY(keys(value, path, {"scale", "zero_point", "axis"}, {"scale", "zero_point"}));
    QParams quant;
    const Value& scale = *value.find("scale");
    PYQUANT_TRY(expect(scale, Kind::Array, path + ".scale"));
    quant.scale.resize(scale.items.size());
    for (size_t i = 0; i < quant.scale.size(); ++i) {
      const std::string place = path + ".scale[" + std::to_string(i) + "]";
      PYQUANT_TRY(expect(scale.items[i], Kind::Number, place));
      if (!scale.items[i].as_float(quant.scale[i])) {
        return bad(Code::E_PLAN_VALUE, scale.items[i], place,
                   "saw " + scale.items[i].text + ", which float32 cannot represent");
      }
    }
    const Value& zero = *value.find("zero_point");
    PYQUANT_TRY(expect(zero, Kind::Array, path + ".zero_point"));
    quant.zero_point.resize(zero.items.size());
    for (size_t i = 0; i < quant.zero_point.size(); ++i) {
      const std::string place = path + ".zero_point[" + std::to_string(i) + "]";
      PYQUANT_TRY(expect(zero.items[i], Kind::Number, place));
      if (!zero.items[i].as_int(quant.zero_point[i])) {
        return bad(Code::E_PLAN_VALUE, zero.items[i], place,
                   "saw " + zero.items[i].text + ", expected an integer of 64 bits");
      }
    }
    if (const Value* axis = value.find("axis")) PYQUANT_TRY(int32(*axis, path + ".axis", quant.axis));
    tensor.quant = std::move(quant);
    return {};
  }

  // Tensors that name the same constant share one buffer; buffers are in the order of first use.
  Status constant(const Value& value, const std::string& path, Tensor& tensor) {
    ConstantRef ref;
    ref.graph = graph_;
    ref.first_tensor = here().tensors.size();
    if (value.kind == Kind::String) {
      ref.by_name = true;
      ref.name = value.text;
    } else if (!value.as_int(ref.index)) {
      return bad(Code::E_PLAN_TYPE, value, path,
                 std::string("saw ") + json::kind_name(value.kind) +
                     ", expected an index into the constants or a name in the weights file");
    }
    const auto [entry, is_new] =
        buffers_.try_emplace({ref.index, ref.name}, static_cast<uint32_t>(plan_.constants.size() + 1));
    tensor.buffer = entry->second;
    if (is_new) plan_.constants.push_back(std::move(ref));
    plan_.model.buffers.resize(plan_.constants.size() + 1);
    return {};
  }

  Status named(const Value& value, const std::string& path, std::vector<NamedIndex>& out) const {
    PYQUANT_TRY(expect(value, Kind::Object, path));
    for (size_t i = 0; i < value.keys.size(); ++i) {
      int32_t index = 0;
      PYQUANT_TRY(int32(value.items[i], path + "." + value.keys[i], index));
      if (index < 0) {
        return bad(Code::E_PLAN_VALUE, value.items[i], path + "." + value.keys[i],
                   "saw " + std::to_string(index) + ", expected the index of a tensor");
      }
      out.emplace_back(value.keys[i], static_cast<uint32_t>(index));
    }
    return {};
  }

  Status signature(const Value& value, const std::string& path) {
    PYQUANT_TRY(expect(value, Kind::Object, path));
    PYQUANT_TRY(keys(value, path, {"key", "inputs", "outputs"}, {"key", "inputs", "outputs"}));
    Signature signature;
    signature.subgraph = static_cast<uint32_t>(graph_);
    PYQUANT_TRY(text(value, path, "key", signature.key));
    PYQUANT_TRY(named(*value.find("inputs"), path + ".inputs", signature.inputs));
    PYQUANT_TRY(named(*value.find("outputs"), path + ".outputs", signature.outputs));
    plan_.model.signatures.push_back(std::move(signature));
    return {};
  }

  Status metadata(const Value& value) {
    PYQUANT_TRY(expect(value, Kind::Object, "metadata"));
    auto texts = std::make_shared<std::vector<std::string>>();
    texts->reserve(value.keys.size());  // spans into the strings stay valid
    for (size_t i = 0; i < value.keys.size(); ++i) {
      PYQUANT_TRY(expect(value.items[i], Kind::String, "metadata." + value.keys[i]));
      texts->push_back(value.items[i].text);
      Buffer buffer;
      buffer.bytes = {reinterpret_cast<const uint8_t*>(texts->back().data()), texts->back().size()};
      plan_.model.metadata.push_back({value.keys[i], static_cast<uint32_t>(plan_.model.buffers.size())});
      plan_.model.buffers.push_back(buffer);
    }
    plan_.model.owners.push_back(std::move(texts));
    return {};
  }

  const std::string& what_;
  Plan plan_;
  size_t graph_ = 0;  // the one that is being read
  std::map<std::pair<int64_t, std::string>, uint32_t> buffers_;
};

}  // namespace

Result<Plan> parse_plan(std::string_view text, const std::string& what) {
  PYQUANT_TRY_ASSIGN(const json::Value root, json::parse(text, what));
  return PlanParser(what).plan(root);
}

}  // namespace pyquant::circle
