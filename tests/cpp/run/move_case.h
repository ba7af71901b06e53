// SPDX-License-Identifier: Apache-2.0
// A move as its test sees it: operands, and where each element of the output comes from. check_moves() gives
// the data values and grids of every kind, runs the step and compares every element.
#pragma once

#include <functional>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "values.h"

namespace run {

/// An element of an input; 0 in the output's grid where there is none.
using Source = std::optional<std::pair<size_t, int64_t>>;
using SourceOf = std::function<Source(size_t k, const Place& place)>;

struct MoveCase {
  std::vector<Operand> in, out;  // of data, only the shapes count
  Options options = {};
  std::vector<size_t> data = {0};  // inputs that are data
  SourceOf source;
};

/// Some random cases for each type (all but ggml's) and each kind of grids: none, equal, different, by
/// channel.
void check_moves(const std::string& op, const std::function<MoveCase(std::mt19937&)>& make, int rounds = 12);

inline Operand tensor(const Shape& shape) { return {DType::FLOAT32, shape}; }
inline std::vector<int64_t> wide(const Shape& shape) { return {shape.begin(), shape.end()}; }
inline DType random_int(std::mt19937& random) {
  return uniform(random, 0, 1) == 0 ? DType::INT32 : DType::INT64;
}
/// Integers that are constant or not.
inline Operand some_ints(std::mt19937& random, const std::vector<int64_t>& values) {
  return ints(values, uniform(random, 0, 1) == 0 && !values.empty(), random_int(random));
}

}  // namespace run
