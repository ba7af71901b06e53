// SPDX-License-Identifier: Apache-2.0
// Runs one graph: plans it for the shapes of its inputs, and computes outputs where the caller wants them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "run/plan.h"
#include "run/program.h"
#include "run/workspace.h"

namespace pyquant::run {

struct RunOptions {
  /// Bytes that one tensor, the arena and the scratch of a graph may have.
  uint64_t memory_limit = uint64_t{16} << 30;
};

/// What one operator did, over all runs since the profile began.
struct StepProfile {
  size_t op = 0;
  int64_t calls = 0;
  int64_t nanoseconds = 0;
  int64_t bytes = 0;          // of its operands, read and written, per call
  int64_t multiply_adds = 0;  // per call
};

class Runner {
 public:
  Runner(std::shared_ptr<const Program> program, std::shared_ptr<Workspace> workspace,
         RunOptions options = {});

  const Program& program() const { return *program_; }
  const std::vector<Port>& inputs() const { return program_->inputs(); }
  const std::vector<Port>& outputs() const { return program_->outputs(); }

  /// Plans the graph for these input shapes (nothing when it is planned for them already). Fails with
  /// E_RUN_INPUT where they do not fit, and as make_plan.
  Status prepare(const std::vector<Shape>& shapes);
  /// The shapes that the file declares; only of a graph without open ones.
  Status prepare();
  /// After prepare: shape and bytes of output k, bytes of input i.
  const Shape& output_shape(size_t k) const { return plan_->shapes[outputs()[k].index]; }
  int64_t output_bytes(size_t k) const { return plan_->bytes[outputs()[k].index]; }
  int64_t input_bytes(size_t i) const { return plan_->bytes[inputs()[i].index]; }

  /// Sees a tensor after the operator that writes it (inputs and constants first, with op = -1).
  using Observer = std::function<void(int64_t op, size_t tensor, const Shape& shape, circle::Bytes bytes)>;

  /// After prepare: computes. inputs[i] has input_bytes(i) bytes in the tensor's own dtype and is only read;
  /// outputs[k] has room for output_bytes(k); each lies where its elements may, and none overlaps an output.
  /// Runs of one workspace wait for each other; an observer runs no graph of it (E_RUN_INPUT). Threads that
  /// share a runner hold the workspace's mutex from prepare to run, as the plan is that of the last prepare.
  /// Fails with E_RUN_VALUE and E_RUN_SHAPE for values that an operator cannot take; outputs are then
  /// undefined.
  Status run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
             const Observer* observer = nullptr);

  /// Measures each step of the runs from now on (costs a clock call per operator).
  void start_profile();
  const std::vector<StepProfile>& profile() const { return profile_; }

 private:
  Status steps(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
               const Observer* observer);
  Status not_in_run() const;
  Status require_aligned(const Port& port, const void* data) const;
  void observe(int64_t op, size_t tensor, const Observer& observer) const;

  std::shared_ptr<const Program> program_;
  std::shared_ptr<Workspace> workspace_;
  RunOptions options_;
  circle::SharedData shared_;
  std::optional<Plan> plan_;
  std::vector<Shape> planned_;
  std::vector<uint8_t*> data_;  // by tensor, of the run
  bool profiling_ = false;
  std::vector<StepProfile> profile_;
};

}  // namespace pyquant::run
