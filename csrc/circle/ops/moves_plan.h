// SPDX-License-Identifier: Apache-2.0
// What a move knows before it runs: operands, their strides, which grids meet. Private to csrc/circle/ops.
#pragma once

#include <memory>
#include <vector>

#include "circle/ops/computed.h"
#include "circle/ops/moves.h"
#include "kernels/fused.h"
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
  ComputedInts ints;
  int bits = 0;
  kernels::IntKind kind{};  // of quantized types
  Grids grid_mode = Grids::Keep;
  std::vector<ElementGrid> grids;               // of all inputs, channel by channel; the last has scale 1
  std::vector<int32_t> counting;                // 0, 1, 2 ...: the number of each grid
  std::vector<size_t> numbers;                  // by output: where its elements' numbers are in scratch
  kernels::Fused fused = kernels::Fused::none;  // of quantized types; grids are by element then
  std::vector<kernels::Rounder> limits;         // with `fused`: by channel of output 0

  /// From a grid to that of a channel of output k, within the limits of an activation.
  kernels::GridChange change(const ElementGrid& from, size_t k, size_t channel) const;
  /// An integer of a grid becomes one of a channel of output k.
  int32_t changed(const ElementGrid& from, size_t k, size_t channel, int32_t q) const;
};

Result<std::shared_ptr<const MovePlan>> make_plan(Builder& builder, const Ints& ints, MoveFunction function,
                                                  Order order);

}  // namespace pyquant::circle
