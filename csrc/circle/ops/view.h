// SPDX-License-Identifier: Apache-2.0
// One operator of a model, its operands by position, whether they exist or not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "circle/ir.h"

namespace pyquant::circle {

class OpView {
 public:
  OpView(const Model& model, const Graph& graph, const Operator& op)
      : model_(model), graph_(graph), op_(op) {}

  const Model& model() const { return model_; }
  const Graph& graph() const { return graph_; }
  const Operator& op() const { return op_; }
  size_t inputs() const { return op_.inputs.size(); }
  size_t outputs() const { return op_.outputs.size(); }
  /// nullptr when it is -1, absent or dangling.
  const Tensor* input(size_t i) const { return operand(op_.inputs, i); }
  const Tensor* output(size_t i) const { return operand(op_.outputs, i); }
  bool is_constant(size_t i) const { return input(i) && model_.is_constant(*input(i)); }
  /// "input 1 'w' (int8 [3, 4])"
  std::string input_text(size_t i) const;
  std::string output_text(size_t i) const;

  /// An option of an operator whose options were read; `fallback` otherwise.
  template <typename T>
  T option(std::string_view name, T fallback) const {
    const int i = op_.op ? op_.op->option(name) : -1;
    if (i < 0 || static_cast<size_t>(i) >= op_.options.size()) return fallback;
    return std::get<T>(op_.options[static_cast<size_t>(i)]);
  }

 private:
  const Tensor* operand(const std::vector<int32_t>& list, size_t i) const {
    return i < list.size() && graph_.has_tensor(list[i]) ? &graph_.tensors[static_cast<size_t>(list[i])]
                                                         : nullptr;
  }

  const Model& model_;
  const Graph& graph_;
  const Operator& op_;
};

}  // namespace pyquant::circle
