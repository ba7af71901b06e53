// SPDX-License-Identifier: Apache-2.0
// How operators that move values run: private to csrc/circle/ops. A move says which elements go where; it is
// run on the values, whatever their type. Where the grids of input and output differ, it is run once more, on
// numbers that name the grid of each element, and every integer is rounded to the output's grid, once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "circle/ops/row.h"
#include "kernels/move.h"

namespace pyquant::circle {

/// Elements to step over in each dimension of a dense tensor.
std::vector<int64_t> dense_strides(const std::vector<int32_t>& shape);
/// How an element lies in memory: 4, 8, 16, 32 or 64 bits; 0 for types that are in blocks or unknown.
int element_bits(DType dtype);
/// Whether its values are there when the step is prepared, at operand.constant.
inline bool is_known(const TensorArg& operand) { return operand.constant || operand.elements == 0; }
/// The fault of a value that the operator cannot take.
Fault value_fault(const OpView& op, std::string message);

struct MovePlan;

/// A move that runs: what a move function reads and writes, either values or the numbers of their grids.
class Job {
 public:
  Job(const MovePlan& plan, const Frame& frame, const std::vector<std::vector<int64_t>>& ints, bool numbers)
      : plan_(plan), frame_(frame), ints_(ints), numbers_(numbers) {}

  const OpView& op() const;
  const TensorArg& in(size_t i) const;
  const TensorArg& out(size_t k) const;
  const Frame& frame() const { return frame_; }
  /// The values of an integer input that move_step was told of.
  const std::vector<int64_t>& ints(size_t i) const { return ints_[i]; }

  int bits() const;
  /// Of a data input, by dimension; 0 where all elements have one grid and the job moves its number.
  const std::vector<int64_t>& strides(size_t i) const;
  /// Of a data input as it is; of an output.
  const std::vector<int64_t>& dense_in(size_t i) const;
  const std::vector<int64_t>& dense_out(size_t k) const;
  const uint8_t* source(size_t i) const;
  uint8_t* target(size_t k) const;
  /// Elements of input i from `from` on to output k from `to` on.
  void move(const kernels::CopyNest& nest, size_t i, int64_t from, size_t k, int64_t to) const {
    kernels::move(frame_.threads(), nest, bits(), {source(i), from}, {target(k), to});
  }
  /// Elements of output k become the one element of input i.
  void fill(size_t i, size_t k, int64_t to, int64_t n) const {
    kernels::fill(bits(), source(i), {target(k), to}, n);
  }
  /// All elements of output 0 become 0 (in input 0's grid).
  void fill_zero() const;

 private:
  const MovePlan& plan_;
  const Frame& frame_;
  const std::vector<std::vector<int64_t>>& ints_;
  const bool numbers_;
};

/// Positions of inputs.
using Ints = std::vector<size_t>;
using MoveFunction = std::function<Status(const Job&)>;

/// Whether a move has the elements of input 0 in their order, so that grids by channel may stay what they
/// are.
enum class Order : uint8_t { Any, Same };

/// The step of a move. `ints`: inputs whose values decide the shape; where one is not constant, the step
/// infers the shape again when it runs and fails unless it is the planned one (this allocates a little,
/// nothing else does). The model has to outlive the step.
Result<Step> move_step(Builder& builder, const Ints& ints, MoveFunction function, Order order = Order::Any);

}  // namespace pyquant::circle
