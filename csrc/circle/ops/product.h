// SPDX-License-Identifier: Apache-2.0
// What the operators with weights share: operands of a file as the operands of a matrix product
// (kernels/dot.h), and the two loops over its rows and units.
#pragma once

#include "circle/ops/operand.h"
#include "circle/ops/row.h"
#include "kernels/dot.h"

namespace pyquant::circle {

class Product {
 public:
  /// Whether the kernels of csrc/kernels/dot.h take these scales: one for x, for y, and for each row of w
  /// (its dimension `channel_axis`) and of the bias. Others are for product_by_channel().
  static bool takes(const Builder& b, const TensorArg& bias, size_t channel_axis);
  /// Types, scales, bias and activation of x, w and y; sizes, steps and first elements are left to the
  /// caller, who sets them in `linear`. `by_rows`: rows of w lie one after the other in memory, as blocks of
  /// ggml have to. Where float x meets scales or blocks that the kernels do not take, w is made float32 on
  /// each run.
  Product(Builder& b, const TensorArg& bias, size_t channel_axis, bool by_rows = true);

  kernels::Linear linear{};
  kernels::LinearPlan plan{};

  /// After the sizes are set: the plan, memory for `copies` prepared inputs of it. False where sums of
  /// integers are so long that double may not hold them.
  [[nodiscard]] bool place(Builder& b, int64_t copies = 1);
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

  const void* weights(const Frame& frame) const;

  TensorArg x_, w_, bias_, y_;
  std::optional<RealOperand> dense_;  // w, where it is made float32
  size_t dense_at_ = 0;
  size_t scratch_ = 0, unpacked_ = 0;
  int64_t prepared_bytes_ = 0;
};

/// Which elements of x and w are multiplied for element i of y: each(i, add) calls add(element of x, of w).
using AddTerm = std::function<void(int64_t, int64_t)>;
using Terms = std::function<void(int64_t, const AddTerm&)>;
/// The same operators in quantized tensors of any scales, one sum after the other: `depth` products at most,
/// and the bias of element i % columns.
Step product_by_channel(Builder& b, const TensorArg& bias, int64_t depth, int64_t columns, Terms terms);

Result<Step> prepare_fully_connected(Builder& b);
Result<Step> prepare_batch_matmul(Builder& b);
Result<Step> prepare_conv(Builder& b);
Result<Step> prepare_depthwise(Builder& b);

}  // namespace pyquant::circle
