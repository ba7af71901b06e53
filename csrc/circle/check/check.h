// SPDX-License-Identifier: Apache-2.0
// What the passes of the checker share: where faults go, and safe access to operands that may not exist.
// Each pass is one file and one idea; check.cc runs them in order.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "pyquant/circle.h"

namespace pyquant::circle {

/// Collects faults; a hopeless file does not collect without end.
class Faults {
 public:
  static constexpr size_t kMost = 1000;

  void add(Code code, std::string where, std::string message) {
    if (list_.size() < kMost) list_.push_back({code, std::move(message), place_ + where});
  }
  /// Stands before the place of each fault from now on: which graph it is in, where a file has several.
  void set_place(std::string place) { place_ = std::move(place); }
  std::vector<Fault> take() { return std::move(list_); }
  size_t size() const { return list_.size(); }

 private:
  std::vector<Fault> list_;
  std::string place_;
};

/// Input or output i of an operator; nullptr when it is -1, absent or dangling.
inline const Tensor* operand(const Graph& graph, const std::vector<int32_t>& list, size_t i) {
  return i < list.size() && graph.has_tensor(list[i]) ? &graph.tensors[static_cast<size_t>(list[i])]
                                                      : nullptr;
}
inline const Tensor* input(const Graph& graph, const Operator& op, size_t i) {
  return operand(graph, op.inputs, i);
}
inline const Tensor* output(const Graph& graph, const Operator& op, size_t i) {
  return operand(graph, op.outputs, i);
}
inline bool is_constant_input(const Model& model, const Graph& graph, const Operator& op, size_t i) {
  const Tensor* t = input(graph, op, i);
  return t && model.is_constant(*t);
}
/// An option of an operator whose options were read; `fallback` otherwise.
template <typename T>
T option(const Operator& op, std::string_view name, T fallback) {
  const int i = op.op ? op.op->option(name) : -1;
  if (i < 0 || static_cast<size_t>(i) >= op.options.size()) return fallback;
  return std::get<T>(op.options[static_cast<size_t>(i)]);
}
/// The values of an int32 or int64 constant; empty when it is not one (or its bytes are not known yet).
std::vector<int64_t> constant_ints(const Model& model, const Graph& graph, const Operator& op, size_t i);
inline bool is_dynamic(const Tensor& t) {
  for (int32_t dim : t.shape_signature) {
    if (dim < 0) return true;
  }
  return false;
}
/// "input 1 'w' (int8 [3, 4])"
std::string input_text(const Graph& graph, const Operator& op, size_t i);
std::string output_text(const Graph& graph, const Operator& op, size_t i);
/// "scale 0.5, zero_point 3" of a per-tensor tensor, for messages.
std::string qparams_text(const Tensor& t);
bool same_qparams(const Tensor& a, const Tensor& b);

/// What concerns the whole file: buffers, signatures, metadata.
void check_file(const Model& model, Faults& faults);
void check_structure(const Model& model, const Graph& graph, Faults& faults);
void check_operators(const Model& model, const Graph& graph, Faults& faults);
void check_dtypes(const Model& model, const Graph& graph, Faults& faults);
void check_options(const Model& model, const Graph& graph, Faults& faults);
void check_shapes(const Model& model, const Graph& graph, Faults& faults);
void check_qparams(const Model& model, const Graph& graph, Faults& faults);
void check_dataflow(const Model& model, const Graph& graph, Faults& faults);
void check_luci(const Model& model, const Graph& graph, Faults& faults);
void check_onert(const Model& model, const Graph& graph, Faults& faults);

}  // namespace pyquant::circle
