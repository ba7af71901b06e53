// SPDX-License-Identifier: Apache-2.0
// What the operators with weights share: operands of a file as the operands of a matrix product
// (kernels/dot.h), and the two loops over its rows and units.
#pragma once

#include "circle/ops/row.h"
#include "kernels/dot.h"

namespace pyquant::circle {

class Product {
 public:
  /// Types, scales, bias and activation of x, w and y; sizes, steps and first elements are left to the
  /// caller, who sets them in `linear`. Scales of single rows of w are along its dimension `channel_axis`.
  static Result<Product> of(Builder& b, const TensorArg& bias, size_t channel_axis);

  kernels::Linear linear{};
  kernels::LinearPlan plan{};

  /// After the sizes are set, and again for others: the plan, memory for `copies` prepared inputs of it.
  Status place(Builder& b, int64_t copies = 1);
  /// `linear` with the data of this run.
  kernels::Linear at(const Frame& frame) const;
  uint8_t* prepared(const Frame& frame, int64_t copy = 0) const {
    return frame.scratch(scratch_) + copy * prepared_bytes_;
  }
  /// What is left to do when y is complete: 4-bit integers are packed.
  void pack(const Frame& frame) const;

  /// How many rows and units are worth waking a thread for.
  int64_t row_grain() const { return grain(linear.depth); }
  int64_t unit_grain() const {
    return grain(linear.depth * kernels::kUnitColumns * std::min(linear.rows, kernels::kUnitRows));
  }

 private:
  static int64_t grain(int64_t cost) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(cost, 1)); }

  TensorArg x_, w_, bias_, y_;
  size_t scratch_ = 0, unpacked_ = 0;
  int64_t prepared_bytes_ = 0;
};

Result<Step> prepare_fully_connected(Builder& b);
Result<Step> prepare_batch_matmul(Builder& b);
Result<Step> prepare_conv(Builder& b);
Result<Step> prepare_depthwise(Builder& b);

}  // namespace pyquant::circle
