// SPDX-License-Identifier: Apache-2.0
// Models of a few operators, made for a test: tensors by what they are, constants at addresses that are
// aligned to 4 bytes only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "circle/ir.h"
#include "pyquant/circle.h"

namespace run {

using pyquant::circle::DType;
using Shape = std::vector<int32_t>;
using Options = std::map<std::string, pyquant::circle::OptionValue>;

/// One tensor. A constant has bytes; an input has them where a test runs it.
struct Operand {
  DType dtype = DType::FLOAT32;
  Shape shape;
  std::vector<float> scale = {};
  std::vector<int64_t> zero_point = {};  // as many as scales, 0 where there are none
  int axis = 0;
  std::vector<uint8_t> bytes = {};
  bool constant = false;
};

struct SmallGraph {
  pyquant::circle::Model model;  // of one graph

  SmallGraph() { model.graphs.emplace_back(); }
  pyquant::circle::Graph& graph() { return model.graphs[0]; }
  const pyquant::circle::Graph& graph() const { return model.graphs[0]; }

  /// A tensor, by its number; a constant where the operand is one.
  int32_t tensor(const Operand& operand);
  /// The same as an input of the graph.
  int32_t input(const Operand& operand);
  /// An operator that writes new tensors; the first one's number. Options that are not given have the
  /// schema's initial values.
  int32_t add(const std::string& op, std::vector<int32_t> inputs, const std::vector<Operand>& outputs,
              const Options& options = {});
  void output(int32_t tensor) { graph().outputs.push_back(tensor); }
};

/// Bytes of int32 or int64 values, and a constant or an input of them.
Operand ints(const std::vector<int64_t>& values, bool constant = true, DType dtype = DType::INT32);
Operand ints(const std::vector<int64_t>& values, const Shape& shape, bool constant = true,
             DType dtype = DType::INT32);

}  // namespace run
