// SPDX-License-Identifier: Apache-2.0
// Pass 1: the lists of a model and every index into them; buffers against shapes and types.
#include <algorithm>
#include <set>

#include "circle/check/check.h"

namespace pyquant::circle {
namespace {

std::string count_of(size_t n, const char* what) { return std::to_string(n) + " " + what; }

void check_head(const Model& model, Faults& faults) {
  if (model.version != 0) {
    faults.add(Code::E_VERSION, "model",
               "Model.version is " + std::to_string(model.version) + ", expected 0");
  }
  if (model.graphs.empty()) faults.add(Code::E_SUBGRAPH_COUNT, "model", "has no graph, expected one or more");
  if (model.buffers.empty()) {
    faults.add(Code::E_BUFFER_ZERO, "buffers", "there are none, expected an empty buffer 0");
  } else if (model.buffers[0].bytes.size > 0 || model.buffers[0].claimed > 0) {
    faults.add(
        Code::E_BUFFER_ZERO, "buffers[0]",
        "has " + count_of(model.buffers[0].bytes.size, "bytes") + ", expected none: 0 means 'no data'");
  }
  for (size_t i = 0; i < model.buffers.size(); ++i) {
    const Buffer& buffer = model.buffers[i];
    if (buffer.external && buffer.bytes.size != buffer.claimed) {
      faults.add(Code::E_BUFFER_RANGE, "buffers[" + std::to_string(i) + "]",
                 "claims " + std::to_string(buffer.claimed) + " bytes at offset " +
                     std::to_string(buffer.offset) + " of a file of " + std::to_string(model.file_size) +
                     "; is it truncated?");
    }
  }
}

void check_tensor(const Model& model, const Graph& graph, size_t index, Faults& faults) {
  const Tensor& t = graph.tensors[index];
  const std::string where = tensor_place(graph, static_cast<int64_t>(index));
  if (t.name.empty()) faults.add(Code::E_TENSOR_NAME, where, "has no name; every tensor needs one");
  if (t.is_variable || t.is_sparse) {
    faults.add(Code::E_TENSOR_KIND, where,
               std::string("is ") + (t.is_variable ? "variable" : "sparse or compressed") +
                   ", expected a plain tensor");
  }
  const DTypeInfo* type = info(t.dtype);
  if (!type || type->block_elements == 0) {
    faults.add(Code::E_DTYPE, where, "dtype " + name_of(t.dtype) + " is not one of " + dtype_names());
  }
  const auto elements = element_count(t.shape);
  if (!elements) {
    faults.add(Code::E_SHAPE, where,
               "shape " + shape_text(t.shape) +
                   " has a negative dimension or too many elements; dynamic dimensions " +
                   "stand in shape_signature, with 1 here");
  }
  if (!t.shape_signature.empty()) {
    bool fits = t.shape_signature.size() == t.shape.size();
    for (size_t i = 0; fits && i < t.shape.size(); ++i) {
      fits = t.shape_signature[i] == -1 || t.shape_signature[i] == t.shape[i];
    }
    if (!fits) {
      faults.add(Code::E_SHAPE_SIGNATURE, where,
                 "shape_signature " + shape_text(t.shape_signature) + " does not fit shape " +
                     shape_text(t.shape) + "; expected the same, with -1 where a dimension is dynamic");
    }
  }
  if (t.buffer >= model.buffers.size()) {
    faults.add(Code::E_BUFFER_INDEX, where,
               "buffer " + std::to_string(t.buffer) + " does not exist; there are " +
                   count_of(model.buffers.size(), "buffers"));
    return;
  }
  const Buffer& buffer = model.buffers[t.buffer];
  const auto bytes = byte_size(t.dtype, t.shape);
  if (bytes && model.is_constant(graph.tensors[index]) &&
      buffer.bytes.size != static_cast<uint64_t>(*bytes) &&
      buffer.bytes.size == std::max<uint64_t>(buffer.claimed, buffer.bytes.size)) {
    faults.add(Code::E_BUFFER_SIZE, where,
               "its buffer has " + count_of(buffer.bytes.size, "bytes") + ", " + name_of(t.dtype) + " " +
                   shape_text(t.shape) + " needs " + std::to_string(*bytes));
  }
}

void check_ports(const Graph& graph, const std::vector<int32_t>& list, const char* side, Faults& faults) {
  std::set<int32_t> seen;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = std::string(side) + "[" + std::to_string(i) + "]";
    if (!graph.has_tensor(list[i])) {
      faults.add(Code::E_GRAPH_INDEX, where,
                 "tensor " + std::to_string(list[i]) + " does not exist; there are " +
                     count_of(graph.tensors.size(), "tensors"));
    } else if (!seen.insert(list[i]).second) {
      faults.add(Code::E_GRAPH_DUPLICATE, where, tensor_place(graph, list[i]) + " is listed twice");
    }
  }
}

void check_named(const std::vector<NamedIndex>& named, std::vector<int32_t> graph, const std::string& where,
                 Faults& faults) {
  std::set<std::string> names;
  std::vector<int32_t> indices;
  for (const auto& [name, index] : named) {
    if (name.empty() || !names.insert(name).second) {
      faults.add(Code::E_SIGNATURE, where, "name '" + name + "' is empty or occurs twice");
    }
    indices.push_back(static_cast<int32_t>(index));
  }
  std::sort(indices.begin(), indices.end());
  std::sort(graph.begin(), graph.end());
  if (indices != graph) {
    faults.add(Code::E_SIGNATURE, where,
               "names tensors " + shape_text(indices) + ", the graph has " + shape_text(graph) +
                   "; each must be named once");
  }
}

// A signature for each graph, except that a file of one graph may go without; a graph may have several.
void check_signatures(const Model& model, Faults& faults) {
  std::set<std::string> keys;
  std::set<uint32_t> graphs;
  for (size_t i = 0; i < model.signatures.size(); ++i) {
    const Signature& signature = model.signatures[i];
    const std::string where = "signatures[" + std::to_string(i) + "]";
    if (!keys.insert(signature.key).second || signature.subgraph >= model.graphs.size()) {
      faults.add(Code::E_SIGNATURE, where,
                 "key '" + signature.key + "' of subgraph " + std::to_string(signature.subgraph) +
                     "; expected a key of its own, and one of " + count_of(model.graphs.size(), "subgraphs"));
      continue;
    }
    const Graph& graph = model.graphs[signature.subgraph];
    check_named(signature.inputs, graph.inputs, where + ".inputs", faults);
    check_named(signature.outputs, graph.outputs, where + ".outputs", faults);
    graphs.insert(signature.subgraph);
  }
  if (model.graphs.size() > 1 && graphs.size() != model.graphs.size()) {
    faults.add(Code::E_SIGNATURE, "signatures",
               "name " + std::to_string(graphs.size()) + " of " + count_of(model.graphs.size(), "subgraphs") +
                   "; each of several needs one");
  }
}

void check_metadata(const Model& model, Faults& faults) {
  std::set<std::string> names;
  for (size_t i = 0; i < model.metadata.size(); ++i) {
    const Metadata& entry = model.metadata[i];
    const std::string where = "metadata[" + std::to_string(i) + "] '" + entry.name + "'";
    if (entry.buffer >= model.buffers.size()) {
      faults.add(Code::E_BUFFER_INDEX, where, "buffer " + std::to_string(entry.buffer) + " does not exist");
    }
    if (entry.name.empty() || !names.insert(entry.name).second) {
      faults.add(Code::E_METADATA, where, "has no name, or one that occurs twice");
    }
  }
}

}  // namespace

void check_file(const Model& model, Faults& faults) {
  check_head(model, faults);
  check_signatures(model, faults);
  check_metadata(model, faults);
}

void check_structure(const Model& model, const Graph& graph, Faults& faults) {
  for (size_t i = 0; i < graph.tensors.size(); ++i) check_tensor(model, graph, i, faults);
  check_ports(graph, graph.inputs, "inputs", faults);
  check_ports(graph, graph.outputs, "outputs", faults);
  if (graph.outputs.empty())
    faults.add(Code::E_GRAPH_EMPTY, "outputs", "there are none; a graph computes something");
}

}  // namespace pyquant::circle
