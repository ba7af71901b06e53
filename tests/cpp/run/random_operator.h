// SPDX-License-Identifier: Apache-2.0
// Models of one operator, drawn at random: any dtypes, shapes, options and values that ops.def has room for.
// Most are wrong in some way; those that the checker lets through must run, or say why not.
#pragma once

#include <cstdint>
#include <random>

#include "circle/ir.h"

namespace run {

class RandomOperator {
 public:
  explicit RandomOperator(uint64_t seed) : random_(seed) {}

  /// A model of operator `op`; outputs have the shapes that its row infers, where it infers any.
  pyquant::circle::Model draw(const pyquant::circle::OpInfo& op);
  /// Bytes of any values.
  std::vector<uint8_t> bytes(size_t count);

 private:
  int pick(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random_); }
  bool chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }
  std::vector<int32_t> shape();
  std::vector<int32_t> shape_of(const pyquant::circle::OpInfo& op, size_t i,
                                const std::vector<int32_t>& data);
  pyquant::circle::DType dtype_of(char role, pyquant::circle::DType data);
  pyquant::circle::DType data_dtype(const pyquant::circle::OpInfo& op);
  /// One grid, or one for each channel of any axis.
  void give_grid(pyquant::circle::Tensor& t, bool by_channel, bool zero_is_0);
  int32_t add(pyquant::circle::Model& model, pyquant::circle::DType dtype, std::vector<int32_t> shape,
              bool constant, bool integers);
  pyquant::circle::OptionValue option(const pyquant::circle::Field& field, size_t outputs, size_t inputs);

  std::mt19937_64 random_;
};

}  // namespace run
