// SPDX-License-Identifier: Apache-2.0
// What a move knows before it runs: operands, their strides, which grids meet. Private to csrc/circle/ops.
#pragma once

#include <memory>
#include <vector>

#include "circle/ops/moves.h"
#include "kernels/requantize.h"

namespace pyquant::circle {

/// The grid of an element that moves; `keep`: plain integers, which stay as they are.
struct ElementGrid {
  float scale = 1.0f;
  int64_t zero_point = 0;
  bool keep = false;
};

struct MovePlan {
  explicit MovePlan(const OpView& op) : view(op) {}

  enum class Grids { Keep, One, ByElement };
  struct Source {  // a data input
    std::vector<int64_t> strides, number_strides;
    size_t first_grid = 0;
  };

  OpView view;
  MoveFunction function;
  std::vector<TensorArg> in, out;
  std::vector<Source> sources;  // by input
  std::vector<std::vector<int64_t>> out_strides;
  std::vector<std::vector<int64_t>> ints;  // by input, of those that are constant
  std::vector<size_t> dynamic;             // inputs that are not
  std::vector<Shape> shapes;               // of the model's tensors, for `dynamic`
  int bits = 0;
  kernels::IntKind kind{};  // of quantized types
  Grids grid_mode = Grids::Keep;
  std::vector<ElementGrid> grids;  // of all inputs, channel by channel; the last has scale 1
  std::vector<int32_t> counting;   // 0, 1, 2 ...: the number of each grid
  std::vector<size_t> numbers;     // by output: where its elements' numbers are in scratch

  /// From a grid to that of a channel of output k.
  kernels::GridChange change(const ElementGrid& from, size_t k, size_t channel) const;
};

Result<std::shared_ptr<const MovePlan>> make_plan(Builder& builder, const Ints& ints, MoveFunction function,
                                                  Order order);

}  // namespace pyquant::circle
