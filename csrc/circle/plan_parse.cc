// SPDX-License-Identifier: Apache-2.0
// Plan text to Model. Strict: an unknown key, a wrong type or a spelling that the schema does not have is an
// error that says line, column and path; nothing is guessed.
#include <map>

#include "circle/json.h"
#include "circle/plan.h"
#include "circle/plan_reader.h"

namespace pyquant::circle {
namespace {

using json::Kind;
using json::Value;

class PlanParser : private PlanReader {
 public:
  using PlanReader::PlanReader;

  Result<Plan> plan(const Value& root) {
    PYQUANT_TRY(expect(root, Kind::Object, "plan"));
    PYQUANT_TRY(header(root));
    PYQUANT_TRY(keys(root, "plan",
                     {"format", "version", "name", "description", "metadata", "tensors", "operators",
                      "inputs", "outputs", "signature"},
                     {"tensors", "operators", "inputs", "outputs"}));
    Model& model = plan_.model;
    PYQUANT_TRY(text(root, "plan", "name", model.name));
    PYQUANT_TRY(text(root, "plan", "description", model.description));
    const Value& tensors = *root.find("tensors");
    PYQUANT_TRY(expect(tensors, Kind::Array, "tensors"));
    for (size_t i = 0; i < tensors.items.size(); ++i) {
      PYQUANT_TRY(tensor(tensors.items[i], "tensors[" + std::to_string(i) + "]"));
    }
    const Value& operators = *root.find("operators");
    PYQUANT_TRY(expect(operators, Kind::Array, "operators"));
    for (size_t i = 0; i < operators.items.size(); ++i) {
      Operator& op = model.operators.emplace_back();
      PYQUANT_TRY(operation(operators.items[i], "operators[" + std::to_string(i) + "]", op));
    }
    PYQUANT_TRY(ints(*root.find("inputs"), "inputs", model.inputs));
    PYQUANT_TRY(ints(*root.find("outputs"), "outputs", model.outputs));
    if (const Value* value = root.find("signature")) PYQUANT_TRY(signature(*value));
    if (const Value* value = root.find("metadata")) PYQUANT_TRY(metadata(*value));
    return std::move(plan_);
  }

 private:
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
    plan_.model.tensors.push_back(std::move(tensor));
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
                   "saw " + scale.items[i].text + ", which float32 cannot hold");
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

  // Tensors that name the same constant share one buffer; buffers stand in the order of first use.
  Status constant(const Value& value, const std::string& path, Tensor& tensor) {
    ConstantRef ref;
    ref.first_tensor = plan_.model.tensors.size();
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

  Status signature(const Value& value) {
    PYQUANT_TRY(expect(value, Kind::Object, "signature"));
    PYQUANT_TRY(keys(value, "signature", {"key", "inputs", "outputs"}, {"key", "inputs", "outputs"}));
    Signature signature;
    PYQUANT_TRY(text(value, "signature", "key", signature.key));
    PYQUANT_TRY(named(*value.find("inputs"), "signature.inputs", signature.inputs));
    PYQUANT_TRY(named(*value.find("outputs"), "signature.outputs", signature.outputs));
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

  Plan plan_;
  std::map<std::pair<int64_t, std::string>, uint32_t> buffers_;
};

}  // namespace

Result<Plan> parse_plan(std::string_view text, const std::string& what) {
  PYQUANT_TRY_ASSIGN(const json::Value root, json::parse(text, what));
  return PlanParser(what).plan(root);
}

}  // namespace pyquant::circle
