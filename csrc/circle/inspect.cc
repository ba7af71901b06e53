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
  for (const Operator& op : model.operators) ++summary.operators[op_name(op)];
  std::vector<bool> counted(model.buffers.size(), false);
  for (size_t i = 0; i < model.tensors.size(); ++i) {
    const Tensor& t = model.tensors[i];
    if (is_float(t.dtype)) ++summary.float_tensors;
    if (!model.is_constant(i)) continue;
    Count& count = summary.constants[name_of(t.dtype)];
    ++count.tensors;
    if (!counted[t.buffer]) count.bytes += model.buffers[t.buffer].bytes.size;
    counted[t.buffer] = true;
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

std::string graph_side(const Model& model, const std::vector<int32_t>& list) {
  std::string text;
  for (int32_t t : list) {
    text += "  " + tensor_place(model, t);
    if (model.has_tensor(t)) text += "  " + tensor_text(model.tensors[static_cast<size_t>(t)]);
    text += "\n";
  }
  return text;
}

std::string names(const Model& model, const std::vector<int32_t>& list) {
  std::string text;
  for (size_t i = 0; i < list.size(); ++i) {
    if (i) text += ", ";
    if (list[i] == -1) {
      text += "-";
    } else {
      text += model.has_tensor(list[i]) ? model.tensors[static_cast<size_t>(list[i])].name
                                        : "tensors[" + std::to_string(list[i]) + "]";
    }
  }
  return text;
}

std::string operator_text(const Model& model, size_t index) {
  const Operator& op = model.operators[index];
  std::string text = "  [" + std::to_string(index) + "] " + op_name(op) + "(" + names(model, op.inputs) +
                     ") -> " + names(model, op.outputs);
  for (size_t i = 0; i < op.options.size(); ++i) {
    const Field& field = op.op->options->fields[i];
    text += std::string(i ? ", " : "  ") + field.name + "=" + option_text(field, op.options[i]);
  }
  if (const Tensor* t = output(model, op, 0)) text += "  : " + tensor_text(*t);
  return text + "\n";
}

std::string metadata_text(const Model& model, const Metadata& entry) {
  if (entry.buffer >= model.buffers.size()) return "(no such buffer)";
  const Bytes bytes = model.buffers[entry.buffer].bytes;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  const bool readable = is_utf8(text) && text.find('\0') == std::string_view::npos;
  return readable ? std::string(text) : std::to_string(bytes.size) + " bytes";
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
  out += "graph '" + model.name + "': " + std::to_string(model.tensors.size()) + " tensors (" +
         std::to_string(summary.float_tensors) + " float), " + std::to_string(model.operators.size()) +
         " operators\n";
  if (model.subgraphs != 1) {
    out += "note: the file has " + std::to_string(model.subgraphs) + " subgraphs; only the first is shown\n";
  }
  out += "inputs\n" + graph_side(model, model.inputs) + "outputs\n" + graph_side(model, model.outputs);
  for (const Signature& signature : model.signatures) {
    out += "signature '" + signature.key + "': inputs " + named_json(signature.inputs) + ", outputs " +
           named_json(signature.outputs) + "\n";
  }
  if (!summary.constants.empty()) out += "constants\n";
  for (const auto& [dtype, count] : summary.constants) {
    out += "  " + dtype + ": " + std::to_string(count.tensors) + " tensors, " + std::to_string(count.bytes) +
           " bytes\n";
  }
  out += "operators by name\n";
  for (const auto& [name, count] : summary.operators)
    out += "  " + std::to_string(count) + " x " + name + "\n";
  out += "operators\n";
  for (size_t i = 0; i < model.operators.size(); ++i) out += operator_text(model, i);
  return out;
}

std::string inspect_json(const Model& model, const std::string& title) {
  const Summary summary = summarize(model);
  std::string out = "{\"file\": " + quoted(title) + ", \"bytes\": " + std::to_string(model.file_size) +
                    ", \"layout\": " + (summary.external ? "\"external\"" : "\"inline\"") +
                    ", \"subgraphs\": " + std::to_string(model.subgraphs) +
                    ",\n \"name\": " + quoted(model.name) +
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
  out += "},\n \"inputs\": " + ints_json(model.inputs) + ", \"outputs\": " + ints_json(model.outputs) +
         ",\n \"signatures\": [";
  for (size_t i = 0; i < model.signatures.size(); ++i) {
    const Signature& signature = model.signatures[i];
    out += (i ? ", " : "") + ("{\"key\": " + quoted(signature.key)) +
           ", \"inputs\": " + named_json(signature.inputs) +
           ", \"outputs\": " + named_json(signature.outputs) + "}";
  }
  out += "],\n \"tensors\": [";
  for (size_t i = 0; i < model.tensors.size(); ++i) {
    out += (i ? ",\n  " : "\n  ") + tensor_json_open(model.tensors[i]);
    if (model.is_constant(i)) {
      const Buffer& buffer = model.buffers[model.tensors[i].buffer];
      out += ", \"buffer\": " + std::to_string(model.tensors[i].buffer) +
             ", \"constant_bytes\": " + std::to_string(buffer.bytes.size);
    }
    out += "}";
  }
  out += "],\n \"operators\": [";
  for (size_t i = 0; i < model.operators.size(); ++i) {
    out += (i ? ",\n  " : "\n  ") + operator_json(model.operators[i]);
  }
  return out + "]}\n";
}

}  // namespace pyquant::circle
