// SPDX-License-Identifier: Apache-2.0
// The contents of a file, as text and as JSON. Whether they are valid is left to check/.
#include <algorithm>
#include <map>

#include "circle/check/check.h"
#include "circle/describe.h"
#include "pyquant/circle.h"

namespace pyquant::circle {
namespace {

struct Count {
  size_t tensors = 0;
  uint64_t bytes = 0;
};

struct Summary {
  std::map<std::string, size_t> operators;
  std::map<std::string, Count> constants;  // by dtype
  size_t float_tensors = 0;
  bool external = false;
};

Summary summarize(const Model& model) {
  Summary summary;
  std::vector<bool> counted(model.buffers.size(), false);
  for (const Graph& graph : model.graphs) {
    for (const Operator& op : graph.operators) ++summary.operators[op_name(op)];
    for (const Tensor& t : graph.tensors) {
      if (is_float(t.dtype)) ++summary.float_tensors;
      if (!model.is_constant(t)) continue;
      Count& count = summary.constants[name_of(t.dtype)];
      ++count.tensors;
      if (!counted[t.buffer]) count.bytes += model.buffers[t.buffer].bytes.size;
      counted[t.buffer] = true;
    }
  }
  summary.external =
      std::any_of(model.buffers.begin(), model.buffers.end(), [](const Buffer& b) { return b.external; });
  return summary;
}

std::string dims_text(const Tensor& t) {
  return shape_text(t.shape_signature.size() == t.shape.size() ? t.shape_signature : t.shape);
}

std::string tensor_text(const Tensor& t) {
  std::string text = name_of(t.dtype) + " " + dims_text(t);
  if (t.quant) text += ", " + qparams_text(t);
  return text;
}

std::string graph_side(const Graph& graph, const std::vector<int32_t>& list) {
  std::string text;
  for (int32_t t : list) {
    text += "  " + tensor_place(graph, t);
    if (graph.has_tensor(t)) text += "  " + tensor_text(graph.tensors[static_cast<size_t>(t)]);
    text += "\n";
  }
  return text;
}

std::string names(const Graph& graph, const std::vector<int32_t>& list) {
  std::string text;
  for (size_t i = 0; i < list.size(); ++i) {
    if (i) text += ", ";
    if (list[i] == -1) {
      text += "-";
    } else {
      text += graph.has_tensor(list[i]) ? graph.tensors[static_cast<size_t>(list[i])].name
                                        : "tensors[" + std::to_string(list[i]) + "]";
    }
  }
  return text;
}

std::string operator_text(const Graph& graph, size_t index) {
  const Operator& op = graph.operators[index];
  std::string text = "  [" + std::to_string(index) + "] " + op_name(op) + "(" + names(graph, op.inputs) +
                     ") -> " + names(graph, op.outputs);
  for (size_t i = 0; i < op.options.size(); ++i) {
    const Field& field = op.op->options->fields[i];
    text += std::string(i ? ", " : "  ") + field.name + "=" + option_text(field, op.options[i]);
  }
  if (const Tensor* t = output(graph, op, 0)) text += "  : " + tensor_text(*t);
  return text + "\n";
}

std::string metadata_text(const Model& model, const Metadata& entry) {
  if (entry.buffer >= model.buffers.size()) return "(no such buffer)";
  const Bytes bytes = model.buffers[entry.buffer].bytes;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  const bool readable = is_utf8(text) && text.find('\0') == std::string_view::npos;
  return readable ? std::string(text) : std::to_string(bytes.size) + " bytes";
}

// Head, ports and signature of one graph.
std::string graph_text(const Model& model, uint32_t number) {
  const Graph& graph = model.graphs[number];
  const auto floats = std::count_if(graph.tensors.begin(), graph.tensors.end(),
                                    [](const Tensor& t) { return is_float(t.dtype); });
  std::string out = "graph '" + graph.name + "': " + std::to_string(graph.tensors.size()) + " tensors (" +
                    std::to_string(floats) + " float), " + std::to_string(graph.operators.size()) +
                    " operators\n";
  out += "inputs\n" + graph_side(graph, graph.inputs) + "outputs\n" + graph_side(graph, graph.outputs);
  for (const Signature& signature : model.signatures) {
    if (signature.subgraph != number) continue;
    out += "signature '" + signature.key + "': inputs " + named_json(signature.inputs) + ", outputs " +
           named_json(signature.outputs) + "\n";
  }
  return out;
}

std::string signature_json(const Signature& signature) {
  return "{\"key\": " + quoted(signature.key) + ", \"inputs\": " + named_json(signature.inputs) +
         ", \"outputs\": " + named_json(signature.outputs) + "}";
}

// "tensors" and "operators" of one graph.
std::string contents_json(const Model& model, const Graph& graph) {
  std::string out = "\"tensors\": [";
  for (size_t i = 0; i < graph.tensors.size(); ++i) {
    const Tensor& t = graph.tensors[i];
    out += (i ? ",\n  " : "\n  ") + tensor_json_open(t);
    if (model.is_constant(t)) {
      out += ", \"buffer\": " + std::to_string(t.buffer) +
             ", \"constant_bytes\": " + std::to_string(model.buffers[t.buffer].bytes.size);
    }
    out += "}";
  }
  out += "],\n \"operators\": [";
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    out += (i ? ",\n  " : "\n  ") + operator_json(graph.operators[i]);
  }
  return out + "]";
}

}  // namespace

std::string inspect_text(const Model& model, const std::string& title) {
  const Summary summary = summarize(model);
  std::string out = title + ": Circle, " + std::to_string(model.file_size) + " bytes, ";
  out += summary.external ? "external constants (TICO's runtime reads them, onert crashes)\n"
                          : "inline constants\n";
  if (!model.description.empty()) out += "description: " + model.description + "\n";
  for (const Metadata& entry : model.metadata) {
    out += "metadata: " + entry.name + " = " + metadata_text(model, entry) + "\n";
  }
  for (uint32_t g = 0; g < model.graphs.size(); ++g) out += graph_text(model, g);
  if (!summary.constants.empty()) out += "constants\n";
  for (const auto& [dtype, count] : summary.constants) {
    out += "  " + dtype + ": " + std::to_string(count.tensors) + " tensors, " + std::to_string(count.bytes) +
           " bytes\n";
  }
  out += "operators by name\n";
  for (const auto& [name, count] : summary.operators)
    out += "  " + std::to_string(count) + " x " + name + "\n";
  for (const Graph& graph : model.graphs) {
    out += model.graphs.size() > 1 ? "operators of '" + graph.name + "'\n" : "operators\n";
    for (size_t i = 0; i < graph.operators.size(); ++i) out += operator_text(graph, i);
  }
  return out;
}

std::string inspect_json(const Model& model, const std::string& title) {
  const Graph none;
  const Graph& first_graph = model.graphs.empty() ? none : model.graphs[0];
  const Summary summary = summarize(model);
  std::string out = "{\"file\": " + quoted(title) + ", \"bytes\": " + std::to_string(model.file_size) +
                    ", \"layout\": " + (summary.external ? "\"external\"" : "\"inline\"") +
                    ", \"subgraphs\": " + std::to_string(model.graphs.size()) +
                    ",\n \"name\": " + quoted(first_graph.name) +
                    ", \"description\": " + quoted(model.description) + ",\n \"metadata\": {";
  for (size_t i = 0; i < model.metadata.size(); ++i) {
    out += (i ? ", " : "") + quoted(model.metadata[i].name) + ": " +
           quoted(metadata_text(model, model.metadata[i]));
  }
  out += "},\n \"operator_counts\": {";
  bool first = true;
  for (const auto& [name, count] : summary.operators) {
    out += (first ? "" : ", ") + quoted(name) + ": " + std::to_string(count);
    first = false;
  }
  out += "},\n \"constants\": {";
  first = true;
  for (const auto& [dtype, count] : summary.constants) {
    out += (first ? "" : ", ") + quoted(dtype) + ": {\"tensors\": " + std::to_string(count.tensors) +
           ", \"bytes\": " + std::to_string(count.bytes) + "}";
    first = false;
  }
  out += "},\n \"inputs\": " + ints_json(first_graph.inputs) +
         ", \"outputs\": " + ints_json(first_graph.outputs) + ",\n \"signatures\": [";
  for (size_t i = 0; i < model.signatures.size(); ++i) {
    out += (i ? ", " : "") + signature_json(model.signatures[i]);
  }
  out += "],\n " + contents_json(model, first_graph);
  for (size_t g = 1; g < model.graphs.size(); ++g) {
    const Graph& graph = model.graphs[g];
    out += (g > 1 ? ",\n {\"name\": " : ",\n \"more_graphs\": [{\"name\": ") + quoted(graph.name) +
           ", \"inputs\": " + ints_json(graph.inputs) + ", \"outputs\": " + ints_json(graph.outputs) +
           ",\n " + contents_json(model, graph) + "}";
  }
  return out + (model.graphs.size() > 1 ? "]}\n" : "}\n");
}

}  // namespace pyquant::circle
