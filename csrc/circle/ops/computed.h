// SPDX-License-Identifier: Apache-2.0
// Integers that decide what an operator does (axes, shapes, counts): known when its step is prepared, or
// computed by the graph and read when it runs. Private to csrc/circle/ops.
#pragma once

#include <vector>

#include "circle/ops/row.h"

namespace pyquant::circle {

/// Values by input of the operator; empty for inputs that were not asked for.
using IntValues = std::vector<std::vector<int64_t>>;

class ComputedInts {
 public:
  ComputedInts() = default;
  /// `which`: positions of int32 or int64 inputs. The model has to outlive this.
  ComputedInts(const Builder& b, const std::vector<size_t>& which);

  /// Whether all of them are known before anything runs: values() has them.
  bool known() const { return computed_.empty(); }
  const IntValues& values() const { return values_; }
  /// All of them as they are now. Fails unless they give the outputs the shapes that were planned.
  Status read(const Frame& frame, IntValues* values) const;

 private:
  Status check(const OpView& op, const IntValues& values) const;

  std::shared_ptr<const OpView> op_;
  IntValues values_;
  std::vector<size_t> computed_;
  std::vector<TensorArg> in_, out_;
  std::vector<std::vector<int32_t>> shapes_;  // of the graph's tensors, where some are computed
};

/// The step of a plan that follows from such integers: run(frame, plan_of(values)), with the plan made now,
/// or on each run where some are computed.
template <class PlanOf, class Run>
Step planned_step(const ComputedInts& ints, PlanOf plan_of, Run run) {
  if (ints.known()) {
    return {[run, plan = plan_of(ints.values())](const Frame& frame) -> Status {
              run(frame, plan);
              return {};
            },
            0};
  }
  return {[ints, plan_of, run](const Frame& frame) -> Status {
            IntValues values;
            PYQUANT_TRY(ints.read(frame, &values));
            run(frame, plan_of(values));
            return {};
          },
          0};
}

}  // namespace pyquant::circle
