// SPDX-License-Identifier: Apache-2.0
// What is decided once for a graph and the shapes of its inputs: every tensor's shape and place, and a step
// for each operator. Running it is runner.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "circle/ops/step.h"
#include "run/program.h"

namespace pyquant::run {

using Shape = std::vector<int32_t>;

struct PlannedStep {
  size_t op = 0;  // in the graph
  circle::Step step;
  std::vector<size_t> outputs;  // tensors
};

/// Where a tensor's bytes are while the graph runs.
struct Place {
  enum Kind : uint8_t { None, Constant, Arena, Input, Output };
  Kind kind = None;
  size_t offset = 0;  // Arena: in it. Input, Output: number of the port
  const uint8_t* constant = nullptr;
};

struct Plan {
  std::vector<Shape> shapes;  // by tensor
  std::vector<int64_t> bytes;
  std::vector<Place> places;
  std::vector<PlannedStep> steps;
  /// Outputs whose bytes no step writes: tensor (an input or constant, or another output's), and number of
  /// the port.
  std::vector<std::pair<size_t, size_t>> copies;
  /// Integers that were computed when planning, by tensor; places point into them.
  std::map<size_t, std::vector<uint8_t>> folded;
  size_t arena_bytes = 0;
  size_t scratch_bytes = 0;
};

/// Fails with E_RUN_UNSUPPORTED where a row has no kernel, E_RUN_SHAPE where shapes do not fit, E_RUN_MEMORY
/// where tensors, arena or scratch need more than `limit` bytes. `shared`: tables that plans of one program
/// share.
Result<Plan> make_plan(const Program& program, const std::vector<Shape>& inputs, circle::SharedData& shared,
                       uint64_t limit);

}  // namespace pyquant::run
