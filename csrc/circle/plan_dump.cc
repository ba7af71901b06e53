// SPDX-License-Identifier: Apache-2.0
// Model to plan text and named weights, such that writing them again gives the same bytes for files that we
// wrote. What a plan cannot express is an error, never left out.
#include <cmath>
#include <set>

#include "circle/describe.h"
#include "circle/plan.h"

namespace pyquant::circle {
namespace {

Fault cannot(const std::string& where, const std::string& what) {
  return {Code::E_NOT_PLANNABLE, what + ", which a plan cannot express", where};
}

Status check_plannable(const Model& model) {
  if (model.graphs.empty()) return cannot("model", "has no graph");
  if (!is_utf8(model.description)) return cannot("model", "has a text that is not UTF-8");
  std::set<uint32_t> signed_graphs;
  std::set<std::string> metadata;
  for (const Metadata& entry : model.metadata) {
    const std::string where = "metadata '" + entry.name + "'";
    if (entry.buffer >= model.buffers.size()) return cannot(where, "names a buffer that does not exist");
    const Bytes bytes = model.buffers[entry.buffer].bytes;
    const std::string_view text(reinterpret_cast<const char*>(bytes.data), bytes.size);
    if (!is_utf8(entry.name) || !is_utf8(text)) return cannot(where, "is not UTF-8 text");
    if (!metadata.insert(entry.name).second) return cannot(where, "occurs twice");
  }
  for (const Graph& graph : model.graphs) {
    if (!is_utf8(graph.name)) return cannot("graph", "has a name that is not UTF-8");
  }
  for (const Signature& signature : model.signatures) {
    if (signature.subgraph >= model.graphs.size() || !signed_graphs.insert(signature.subgraph).second) {
      return cannot("signature", "is of no graph, or the second of one");
    }
    const Graph& graph = model.graphs[signature.subgraph];
    for (const auto* entries : {&signature.inputs, &signature.outputs}) {
      std::set<std::string> names;
      for (const auto& [name, index] : *entries) {
        if (!graph.has_tensor(index)) return cannot("signature '" + signature.key + "'", "names no tensor");
        if (!is_utf8(name) || !names.insert(name).second) {
          return cannot("signature '" + signature.key + "'", "has names that occur twice or are not UTF-8");
        }
      }
    }
    if (!is_utf8(signature.key)) return cannot("signature", "has a key that is not UTF-8");
  }
  return {};
}

Status check_tensor(const Model& model, const Graph& graph, size_t index) {
  const Tensor& t = graph.tensors[index];
  const std::string where = tensor_place(graph, static_cast<int64_t>(index));
  if (!is_utf8(t.name)) return cannot(where, "has a name that is not UTF-8");
  if (t.is_variable || t.is_sparse) return cannot(where, "is variable, sparse or compressed");
  const DTypeInfo* type = info(t.dtype);
  if (!type) return cannot(where, "has dtype " + name_of(t.dtype));
  if (t.buffer >= model.buffers.size()) return cannot(where, "names a buffer that does not exist");
  if (model.is_constant(t) && !safetensors_dtype(t.dtype))
    return cannot(where, "is a constant of " + name_of(t.dtype));
  const auto bytes = byte_size(t.dtype, t.shape);
  if (model.is_constant(t) && bytes != static_cast<int64_t>(model.buffers[t.buffer].bytes.size)) {
    return cannot(where, "has a buffer of the wrong size");
  }
  if (!t.quant) return {};
  if (t.quant->details != 0) return cannot(where, "has custom, MX or blockwise quantization");
  for (float scale : t.quant->scale) {
    if (!std::isfinite(scale)) return cannot(where, "has a scale that is not finite");
  }
  return {};
}

Status check_operator(const Graph& graph, size_t index) {
  const Operator& op = graph.operators[index];
  const std::string where = operator_place(graph, index);
  if (!op.op) return cannot(where, "is not in ops.def");
  const OptionsTable& table = *op.op->options;
  const bool there = op.options_type == table.value && op.has_options;
  if (!there && !(table.fields.empty() && op.options_type == 0)) {
    return cannot(where, "has no options, or those of another operator");
  }
  for (size_t i = 0; i < op.options.size(); ++i) {
    const Field& field = table.fields[i];
    if (const float* number = std::get_if<float>(&op.options[i]); number && !std::isfinite(*number)) {
      return cannot(where, std::string("has an option ") + field.name + " that is not finite");
    }
    const bool is_enum = !enum_names(field.kind).empty();
    if (is_enum && option_json(field, op.options[i])[0] != '"') {
      return cannot(where, std::string("has an option ") + field.name + " that the schema does not have");
    }
  }
  return {};
}

WeightsEntry weights_entry(const Model& model, const Tensor& t, std::string name) {
  WeightsEntry entry;
  entry.name = std::move(name);
  entry.dtype = safetensors_dtype(t.dtype);
  entry.bytes = model.buffers[t.buffer].bytes;
  if (info(t.dtype)->block_elements > 1) {
    entry.shape = {static_cast<int64_t>(entry.bytes.size)};
  } else {
    entry.shape.assign(t.shape.begin(), t.shape.end());
  }
  return entry;
}

/// Names of constants by buffer: the first tensor of a buffer names it; tensors may share a name, constants
/// may not.
struct ConstantNames {
  explicit ConstantNames(size_t buffers) : names(buffers) {
    unique.of("__metadata__");
  }  // used by the weights file
  std::vector<std::string> names;
  UniqueNames unique;
};

// The keys of one graph, `indent` before each.
Status dump_graph(const Model& model, uint32_t number, ConstantNames& constants, DumpedPlan& plan,
                  const std::string& indent) {
  const Graph& graph = model.graphs[number];
  std::string& out = plan.json;
  out += ",\n" + indent + "\"tensors\": [";
  for (size_t i = 0; i < graph.tensors.size(); ++i) {
    PYQUANT_TRY(check_tensor(model, graph, i));
    const Tensor& t = graph.tensors[i];
    out += (i ? ",\n " : "\n ") + indent + tensor_json_open(t);
    if (model.is_constant(t)) {
      std::string& name = constants.names[t.buffer];
      if (name.empty()) {
        name = constants.unique.of(t.name.empty() ? "constant" : t.name);
        plan.weights.push_back(weights_entry(model, t, name));
      }
      out += ", \"constant\": " + quoted(name);
    }
    out += "}";
  }
  out += "],\n" + indent + "\"operators\": [";
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    PYQUANT_TRY(check_operator(graph, i));
    out += (i ? ",\n " : "\n ") + indent + operator_json(graph.operators[i]);
  }
  out += "],\n" + indent + "\"inputs\": " + ints_json(graph.inputs) + ",\n" + indent +
         "\"outputs\": " + ints_json(graph.outputs);
  for (const Signature& signature : model.signatures) {
    if (signature.subgraph != number) continue;
    out += ",\n" + indent + "\"signature\": {\"key\": " + quoted(signature.key) +
           ", \"inputs\": " + named_json(signature.inputs) +
           ", \"outputs\": " + named_json(signature.outputs) + "}";
  }
  return {};
}

}  // namespace

Result<DumpedPlan> dump_plan(const Model& model) {
  PYQUANT_TRY(check_plannable(model));
  DumpedPlan plan;
  plan.owners = model.owners;
  std::string& out = plan.json;
  const bool one = model.graphs.size() == 1;
  out = "{\"format\": \"pyquant-plan\", \"version\": 1";
  if (one) out += ",\n \"name\": " + quoted(model.graphs[0].name);
  out += ",\n \"description\": " + quoted(model.description);
  for (size_t i = 0; i < model.metadata.size(); ++i) {
    const Bytes bytes = model.buffers[model.metadata[i].buffer].bytes;
    out += (i ? ", " : ",\n \"metadata\": {") + quoted(model.metadata[i].name) + ": " +
           quoted({reinterpret_cast<const char*>(bytes.data), bytes.size});
    if (i + 1 == model.metadata.size()) out += "}";
  }
  ConstantNames constants(model.buffers.size());
  if (one) {
    PYQUANT_TRY(dump_graph(model, 0, constants, plan, " "));
  } else {
    for (uint32_t g = 0; g < model.graphs.size(); ++g) {
      out += (g ? ",\n  {\"name\": " : ",\n \"graphs\": [\n  {\"name\": ") + quoted(model.graphs[g].name);
      PYQUANT_TRY(dump_graph(model, g, constants, plan, "   "));
      out += "}";
    }
    out += "]";
  }
  out += "}\n";
  return plan;
}

}  // namespace pyquant::circle
