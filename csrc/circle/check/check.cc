// SPDX-License-Identifier: Apache-2.0
// Runs the passes of the checker in order, and defines the helpers that they share.
#include "circle/check/check.h"

#include <cstring>

#include "circle/json.h"

namespace pyquant::circle {
namespace {

std::string operand_text(const Graph& graph, const std::vector<int32_t>& list, size_t i, const char* side) {
  std::string text = std::string(side) + " " + std::to_string(i);
  const Tensor* t = operand(graph, list, i);
  if (!t) return text + " (none)";
  return text + " '" + t->name + "' (" + name_of(t->dtype) + " " + shape_text(t->shape) + ")";
}

}  // namespace

std::optional<Target> target_by_name(std::string_view name) {
  if (name == "circle") return Target::Circle;
  if (name == "luci") return Target::Luci;
  if (name == "onert") return Target::Onert;
  return std::nullopt;
}

const char* target_names() { return "circle, luci, onert"; }

std::vector<int64_t> constant_ints(const Model& model, const Graph& graph, const Operator& op, size_t i) {
  if (!is_constant_input(model, graph, op, i)) return {};
  const Tensor& t = *input(graph, op, i);
  const Bytes bytes = model.buffers[t.buffer].bytes;
  // Another number of values than the shape has is another check's fault; none are known then.
  const auto needed = byte_size(t.dtype, t.shape);
  if (!bytes.data || !needed || bytes.size != static_cast<uint64_t>(*needed)) return {};
  return read_ints(t.dtype, bytes.data, *element_count(t.shape));
}

std::string input_text(const Graph& graph, const Operator& op, size_t i) {
  return operand_text(graph, op.inputs, i, "input");
}

std::string output_text(const Graph& graph, const Operator& op, size_t i) {
  return operand_text(graph, op.outputs, i, "output");
}

std::string qparams_text(const Tensor& t) {
  if (!t.quant || t.quant->scale.empty() || t.quant->zero_point.empty()) return "no qparams";
  std::string text = "scale ";
  json::append_float(text, t.quant->scale[0]);
  text += ", zero_point " + std::to_string(t.quant->zero_point[0]);
  if (t.quant->scale.size() > 1) text += " (first of " + std::to_string(t.quant->scale.size()) + ")";
  return text;
}

// By bits, so that a NaN equals itself and a file does not differ from itself.
bool same_qparams(const Tensor& a, const Tensor& b) {
  if (!a.quant || !b.quant) return a.quant.has_value() == b.quant.has_value();
  const auto &x = a.quant->scale, &y = b.quant->scale;
  return x.size() == y.size() &&
         (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0) &&
         a.quant->zero_point == b.quant->zero_point;
}

std::vector<Fault> check(const Model& model, Target target) {
  Faults faults;
  check_file(model, faults);
  for (size_t i = 0; i < model.graphs.size(); ++i) {
    const Graph& graph = model.graphs[i];
    if (model.graphs.size() > 1) faults.set_place("graphs[" + std::to_string(i) + "] '" + graph.name + "', ");
    check_structure(model, graph, faults);
    check_operators(model, graph, faults);
    check_dtypes(model, graph, faults);
    check_options(model, graph, faults);
    check_shapes(model, graph, faults);
    check_qparams(model, graph, faults);
    check_dataflow(model, graph, faults);
    if (target == Target::Luci) check_luci(model, graph, faults);
    if (target == Target::Onert) check_onert(model, graph, faults);
  }
  return faults.take();
}

}  // namespace pyquant::circle
