// SPDX-License-Identifier: Apache-2.0
// Graphs of several operators, drawn at random: tensors that many operators read, moves that only rename,
// graph outputs in the middle, constants as outputs. What the planner has to get right; operators are those
// of every day, whose shapes their rows infer.
#pragma once

#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

#include "circle/ir.h"

namespace run {

class RandomGraph {
 public:
  explicit RandomGraph(uint64_t seed) : random_(seed) {}

  /// A model of 1 to `most` operators on tensors of one dtype. Nearly all of them are valid.
  pyquant::circle::Model draw(int most);
  /// One thing of a valid model changed: an operand, a shape, a dtype, an option, a grid, a constant's bytes.
  void mutate(pyquant::circle::Model& model);
  std::vector<uint8_t> bytes(size_t count);

 private:
  using Shape = std::vector<int32_t>;

  int pick(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random_); }
  bool chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }
  template <class T>
  T& any(std::vector<T>& list) {
    return list[static_cast<size_t>(pick(0, static_cast<int>(list.size()) - 1))];
  }
  pyquant::circle::QParams grid(pyquant::circle::DType dtype);
  int32_t tensor(pyquant::circle::DType dtype, Shape shape);
  int32_t constant(int32_t tensor);
  int32_t integers(const std::vector<int32_t>& values);
  /// A tensor of the graph that has data by now; `fits` says of which shapes. -1 where there is none.
  template <class Fits>
  int32_t existing(const Fits& fits);
  /// Adds an operator with `outputs` outputs of the dtype, in the shapes that its row infers; keeps the grid
  /// of input `same` where there is one. Whether it was added.
  bool add(std::string_view name, std::vector<int32_t> inputs, size_t outputs, int32_t same = -1,
           int64_t axis = 0);
  bool add_any();

  std::mt19937_64 random_;
  pyquant::circle::Model model_;
  pyquant::circle::DType dtype_ = pyquant::circle::DType::INT16;
  std::vector<int32_t> ready_;  // data tensors with a value
};

}  // namespace run
