// SPDX-License-Identifier: Apache-2.0
// A model of one operator whose step is run: constants lie at addresses that are aligned to 4 bytes only,
// outputs and scratch in memory of exactly their size (ASan sees what goes beyond).
#pragma once

#include <string>
#include <vector>

#include "circle/ops/row.h"
#include "pyquant/circle.h"
#include "small_graph.h"

namespace run {

using pyquant::Code;
using pyquant::Result;
using pyquant::Status;

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
  const pyquant::circle::Graph& graph() const { return graph_.graph(); }

  std::vector<Operand> inputs_, outputs_;
  SmallGraph graph_;
};

}  // namespace run
