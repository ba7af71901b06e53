// SPDX-License-Identifier: Apache-2.0
// run_c.h over run.h.
#include <new>

#include "pyquant/run.h"
#include "pyquant/run_c.h"

struct pyquant_file {
  pyquant::File file;
  std::vector<std::string> signatures;
};

struct pyquant_graph {
  pyquant::Graph graph;
};

namespace {

using pyquant::Fault;
using pyquant::Status;

std::string& last_error() {
  static thread_local std::string text;
  return text;
}

// 0 is no fault, so that codes begin with 1.
int failed(const Fault& fault) {
  last_error() = fault.text();
  return static_cast<int>(fault.code) + 1;
}

int code_of(const Status& status) { return status.ok() ? 0 : failed(status.fault()); }

int missing(const char* what) {
  return failed({pyquant::Code::E_RUN_INPUT, std::string(what) + " is NULL", "the call"});
}

// What call() returns, or E_RUN_MEMORY: C has no exceptions.
template <class Call>
int guarded(const char* where, const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return failed({pyquant::Code::E_RUN_MEMORY, "the system has no more memory", where});
  }
}

const pyquant::TensorInfo* at(const std::vector<pyquant::TensorInfo>& list, size_t index) {
  return index < list.size() ? &list[index] : nullptr;
}

}  // namespace

extern "C" {

const char* pyquant_last_error(void) { return last_error().c_str(); }

int pyquant_file_load(const char* path, int threads, pyquant_file** out) {
  if (!path || !out) return missing(path ? "out" : "path");
  *out = nullptr;
  return guarded(path, [&] {
    pyquant::FileOptions options;
    options.threads = threads;
    auto file = pyquant::File::load(path, options);
    if (!file.ok()) return failed(file.fault());
    auto signatures = file.value().signatures();
    *out = new pyquant_file{std::move(file).value(), std::move(signatures)};
    return 0;
  });
}

void pyquant_file_free(pyquant_file* file) { delete file; }

size_t pyquant_file_signatures(const pyquant_file* file) { return file ? file->signatures.size() : 0; }

const char* pyquant_file_signature(const pyquant_file* file, size_t index) {
  return file && index < file->signatures.size() ? file->signatures[index].c_str() : nullptr;
}

int pyquant_graph_open(const pyquant_file* file, const char* signature, pyquant_graph** out) {
  if (!file || !signature || !out) return missing(!file ? "file" : !signature ? "signature" : "out");
  *out = nullptr;
  return guarded(signature, [&] {
    auto graph = file->file.graph(signature);
    if (!graph.ok()) return failed(graph.fault());
    *out = new pyquant_graph{std::move(graph).value()};
    return 0;
  });
}

void pyquant_graph_free(pyquant_graph* graph) { delete graph; }

size_t pyquant_graph_inputs(const pyquant_graph* graph) { return graph ? graph->graph.inputs().size() : 0; }
size_t pyquant_graph_outputs(const pyquant_graph* graph) { return graph ? graph->graph.outputs().size() : 0; }

const char* pyquant_input_name(const pyquant_graph* graph, size_t index) {
  const auto* info = graph ? at(graph->graph.inputs(), index) : nullptr;
  return info ? info->name.c_str() : nullptr;
}

const char* pyquant_input_dtype(const pyquant_graph* graph, size_t index) {
  const auto* info = graph ? at(graph->graph.inputs(), index) : nullptr;
  return info ? info->dtype.c_str() : nullptr;
}

size_t pyquant_input_rank(const pyquant_graph* graph, size_t index) {
  const auto* info = graph ? at(graph->graph.inputs(), index) : nullptr;
  return info ? info->shape.size() : 0;
}

int32_t pyquant_input_dim(const pyquant_graph* graph, size_t index, size_t dim) {
  const auto* info = graph ? at(graph->graph.inputs(), index) : nullptr;
  return info && dim < info->shape.size() ? info->shape[dim] : 0;
}

const char* pyquant_output_name(const pyquant_graph* graph, size_t index) {
  const auto* info = graph ? at(graph->graph.outputs(), index) : nullptr;
  return info ? info->name.c_str() : nullptr;
}

const char* pyquant_output_dtype(const pyquant_graph* graph, size_t index) {
  const auto* info = graph ? at(graph->graph.outputs(), index) : nullptr;
  return info ? info->dtype.c_str() : nullptr;
}

size_t pyquant_output_rank(const pyquant_graph* graph, size_t index) {
  const auto* info = graph ? at(graph->graph.outputs(), index) : nullptr;
  return info ? info->shape.size() : 0;
}

int32_t pyquant_output_dim(const pyquant_graph* graph, size_t index, size_t dim) {
  const auto* info = graph ? at(graph->graph.outputs(), index) : nullptr;
  if (!info || dim >= info->shape.size()) return 0;
  const auto shape = graph->graph.output_shape(info->name);
  return shape.ok() ? shape.value()[dim] : info->shape[dim];
}

int pyquant_set_shape(pyquant_graph* graph, const char* input, const int32_t* dims, size_t rank) {
  if (!graph || !input || (!dims && rank)) return missing(!graph ? "graph" : !input ? "input" : "dims");
  return guarded(
      input, [&] { return code_of(graph->graph.set_shape(input, std::vector<int32_t>(dims, dims + rank))); });
}

int pyquant_set_input(pyquant_graph* graph, const char* name, const void* data, size_t bytes) {
  if (!graph || !name || (!data && bytes)) return missing(!graph ? "graph" : !name ? "name" : "data");
  return guarded(name, [&] { return code_of(graph->graph.set_input(name, data, bytes)); });
}

int pyquant_set_floats(pyquant_graph* graph, const char* name, const float* values, size_t count) {
  if (!graph || !name || (!values && count)) return missing(!graph ? "graph" : !name ? "name" : "values");
  return guarded(name, [&] { return code_of(graph->graph.set_input(name, values, count)); });
}

int pyquant_run(pyquant_graph* graph) {
  if (!graph) return missing("graph");
  return guarded("the call", [&] { return code_of(graph->graph.run()); });
}

int pyquant_output(const pyquant_graph* graph, const char* name, const void** data, size_t* bytes) {
  if (!graph || !name || !data) return missing(!graph ? "graph" : !name ? "name" : "data");
  const auto found = graph->graph.output(name, bytes);
  if (!found.ok()) return failed(found.fault());
  *data = found.value();
  return 0;
}

int pyquant_get_floats(const pyquant_graph* graph, const char* name, float* values, size_t count) {
  if (!graph || !name || (!values && count)) return missing(!graph ? "graph" : !name ? "name" : "values");
  return guarded(name, [&] { return code_of(graph->graph.get_output(name, values, count)); });
}

}  // extern "C"
