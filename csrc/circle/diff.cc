// SPDX-License-Identifier: Apache-2.0
// What differs between two models, one line each: tensors are matched by name, operators by the tensor they
// produce.
#include <algorithm>
#include <cstring>
#include <map>

#include "circle/check/check.h"
#include "circle/describe.h"
#include "pyquant/circle.h"

namespace pyquant::circle {
namespace {

/// One graph of each file.
class Diff {
 public:
  Diff(const Model& a, const Model& b, uint32_t graph, std::vector<std::string>& lines)
      : model_a_(a), model_b_(b), a_(a.graphs[graph]), b_(b.graphs[graph]), lines_(lines) {
    if (a.graphs.size() > 1) prefix_ = "graph '" + a_.name + "' ";
    text("name", a_.name, b_.name);
    if (graph == 0) text("description", a.description, b.description);
    text("inputs", names(a_, a_.inputs), names(b_, b_.inputs));
    text("outputs", names(a_, a_.outputs), names(b_, b_.outputs));
    if (graph == 0) text("metadata", metadata(a), metadata(b));
    text("signatures", signatures(a, graph), signatures(b, graph));
    tensors();
    operators();
  }

 private:
  void add(std::string line) { lines_.push_back(prefix_ + std::move(line)); }

  void text(const std::string& what, const std::string& a, const std::string& b) {
    if (a != b) add(what + ": " + (a.empty() ? "none" : a) + " -> " + (b.empty() ? "none" : b));
  }

  static std::string names(const Graph& graph, const std::vector<int32_t>& list) {
    std::string out;
    for (size_t i = 0; i < list.size(); ++i) {
      if (i) out += ", ";
      out += list[i] == -1               ? "-"
             : graph.has_tensor(list[i]) ? graph.tensors[static_cast<size_t>(list[i])].name
                                         : "?" + std::to_string(list[i]);
    }
    return out;
  }

  static std::string metadata(const Model& model) {
    std::string out;
    for (const Metadata& entry : model.metadata) {
      const Bytes bytes = entry.buffer < model.buffers.size() ? model.buffers[entry.buffer].bytes : Bytes{};
      out += entry.name + "=" + std::string(reinterpret_cast<const char*>(bytes.data), bytes.size) + " ";
    }
    return out;
  }

  static std::string signatures(const Model& model, uint32_t graph) {
    std::string out;
    const auto add = [&](const std::vector<NamedIndex>& entries) {
      for (const auto& [name, index] : entries) {
        out += name + "=" + names(model.graphs[graph], {static_cast<int32_t>(index)}) + " ";
      }
    };
    for (const Signature& signature : model.signatures) {
      if (signature.subgraph != graph) continue;
      out += signature.key + "(";
      add(signature.inputs);
      out += "-> ";
      add(signature.outputs);
      out += ") ";
    }
    return out;
  }

  static std::map<std::string, size_t> by_name(const Graph& graph) {
    std::map<std::string, size_t> index;
    UniqueNames unique;
    for (size_t i = 0; i < graph.tensors.size(); ++i) index[unique.of(graph.tensors[i].name)] = i;
    return index;
  }

  void tensors() {
    const auto left = by_name(a_), right = by_name(b_);
    for (const auto& [name, i] : left) {
      const auto found = right.find(name);
      if (found == right.end()) {
        add("tensor '" + name + "': only in the first");
      } else {
        tensor("tensor '" + name + "' ", i, found->second);
      }
    }
    for (const auto& [name, i] : right) {
      if (!left.count(name)) add("tensor '" + name + "': only in the second");
    }
  }

  void tensor(const std::string& what, size_t i, size_t k) {
    const Tensor& a = a_.tensors[i];
    const Tensor& b = b_.tensors[k];
    text(what + "dtype", name_of(a.dtype), name_of(b.dtype));
    text(what + "shape", shape_text(a.shape), shape_text(b.shape));
    text(what + "shape_signature", shape_text(a.shape_signature), shape_text(b.shape_signature));
    if (!same_qparams(a, b) || (a.quant && b.quant && a.quant->axis != b.quant->axis)) {
      add(what + "qparams: " + qparams(a) + " -> " + qparams(b));
    }
    const bool first = model_a_.is_constant(a), second = model_b_.is_constant(b);
    if (first != second) {
      add(what + "is a constant only in the " + (first ? "first" : "second"));
    } else if (first) {
      bytes(what, model_a_.buffers[a.buffer].bytes, model_b_.buffers[b.buffer].bytes);
    }
  }

  static std::string qparams(const Tensor& t) {
    std::string out = qparams_text(t);
    if (t.quant && t.quant->scale.size() > 1) out += " on axis " + std::to_string(t.quant->axis);
    return out;
  }

  void bytes(const std::string& what, Bytes a, Bytes b) {
    if (a.size != b.size) {
      add(what + "data: " + std::to_string(a.size) + " bytes -> " + std::to_string(b.size) + " bytes");
    } else if (a.size > 0 && std::memcmp(a.data, b.data, a.size) != 0) {
      size_t count = 0;
      for (size_t i = 0; i < a.size; ++i) count += a.data[i] != b.data[i];
      add(what + "data: " + std::to_string(count) + " of " + std::to_string(a.size) + " bytes differ");
    }
  }

  // Operators go by the tensor that they produce; keys that stand several times are told apart by their
  // order.
  static std::vector<std::string> keys(const Graph& graph) {
    std::vector<std::string> list;
    UniqueNames unique;
    for (size_t i = 0; i < graph.operators.size(); ++i) {
      const Tensor* t = output(graph, graph.operators[i], 0);
      list.push_back(unique.of(t ? t->name : "nothing"));
    }
    return list;
  }

  static std::string options(const Operator& op) {
    std::string out;
    for (size_t i = 0; i < op.options.size(); ++i) {
      const Field& field = op.op->options->fields[i];
      out += (i ? ", " : "") + std::string(field.name) + "=" + option_text(field, op.options[i]);
    }
    return out;
  }

  void operators() {
    const auto left = keys(a_), names_of_b = keys(b_);
    std::map<std::string, size_t> right;
    for (size_t i = 0; i < b_.operators.size(); ++i) right.emplace(names_of_b[i], i);
    std::vector<size_t> order;
    for (size_t i = 0; i < a_.operators.size(); ++i) {
      const auto found = right.find(left[i]);
      const std::string what = "operator " + op_name(a_.operators[i]) + " of '" + left[i] + "'";
      if (found == right.end()) {
        add(what + ": only in the first");
        continue;
      }
      order.push_back(found->second);
      const Operator& a = a_.operators[i];
      const Operator& b = b_.operators[found->second];
      text(what, op_name(a), op_name(b));
      text(what + " inputs", names(a_, a.inputs), names(b_, b.inputs));
      text(what + " outputs", names(a_, a.outputs), names(b_, b.outputs));
      text(what + " options", options(a), options(b));
      right.erase(found);
    }
    for (const auto& [name, i] : right) {
      add("operator " + op_name(b_.operators[i]) + " of '" + name + "': only in the second");
    }
    if (!std::is_sorted(order.begin(), order.end())) add("operators: in another order");
  }

  const Model& model_a_;
  const Model& model_b_;
  const Graph& a_;
  const Graph& b_;
  std::string prefix_;
  std::vector<std::string>& lines_;
};

}  // namespace

std::vector<std::string> diff(const Model& a, const Model& b) {
  std::vector<std::string> lines;
  if (a.graphs.size() != b.graphs.size()) {
    lines.push_back("graphs: " + std::to_string(a.graphs.size()) + " -> " + std::to_string(b.graphs.size()));
    return lines;
  }
  for (uint32_t g = 0; g < a.graphs.size(); ++g) Diff(a, b, g, lines);
  return lines;
}

}  // namespace pyquant::circle
