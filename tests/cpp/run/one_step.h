// SPDX-License-Identifier: Apache-2.0
// A model of one operator whose step is run: constants lie at addresses that are aligned to 4 bytes only,
// outputs and scratch in memory of exactly their size (ASan sees what goes beyond).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "circle/ops/row.h"
#include "pyquant/circle.h"

namespace run {

using pyquant::Code;
using pyquant::Result;
using pyquant::Status;
using pyquant::circle::DType;
using pyquant::circle::Shape;

/// One tensor. Inputs have bytes; an input without dtype is a -1 operand.
struct Operand {
  DType dtype = DType::FLOAT32;
  Shape shape;
  std::vector<float> scale = {};
  std::vector<int64_t> zero_point = {};  // as many as scales, 0 where there are none
  int axis = 0;
  std::vector<uint8_t> bytes = {};
  bool constant = false;
};

using Options = std::map<std::string, pyquant::circle::OptionValue>;

class OneStep {
 public:
  OneStep(const std::string& op, std::vector<Operand> inputs, std::vector<Operand> outputs,
          const Options& options = {});

  const std::vector<Operand>& inputs() const { return inputs_; }
  const std::vector<Operand>& outputs() const { return outputs_; }
  /// What the checker says of the model; "" when nothing.
  std::string faults() const;
  /// The bytes of the outputs.
  Result<std::vector<std::vector<uint8_t>>> run(int threads = 1) const;

 private:
  pyquant::circle::Graph& graph() { return model_.graphs[0]; }
  const pyquant::circle::Graph& graph() const { return model_.graphs[0]; }

  std::vector<Operand> inputs_, outputs_;
  pyquant::circle::Model model_;  // of one graph
};

/// Bytes of int32 or int64 values, and a constant or an input of them.
Operand ints(const std::vector<int64_t>& values, bool constant = true, DType dtype = DType::INT32);
Operand ints(const std::vector<int64_t>& values, const Shape& shape, bool constant = true,
             DType dtype = DType::INT32);

}  // namespace run
