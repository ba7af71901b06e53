// SPDX-License-Identifier: Apache-2.0
// The short way for sums and products of quantized operands: a line of elements in one loop, without buffers
// in between. Private to csrc/kernels; binary_quantized.cc decides where it may be taken.
#pragma once

#include <cstdint>

#include "kernels/broadcast.h"
#include "kernels/reals.h"

namespace pyquant::kernels {

/// maximum and minimum: of the integers, on one grid. In steps of the output: a * a_factor + b * b_factor +
/// offset, or (a - a_zero) * (b - b_zero) * a_factor, where a and b are the stored integers.
struct BinaryLine {
  enum Kind : uint8_t { none, sum, product, maximum, minimum };
  Kind kind = none;
  double a_factor = 0.0, b_factor = 0.0, offset = 0.0;
  int32_t a_zero = 0, b_zero = 0;
};

/// n elements of one run; a and b walk or stand still as it says. Every |result| is below 2^31 before it
/// saturates. False where one of them lies near a step: then y is not to be used.
template <class Q>
bool run_line(const BinaryLine& line, const Rounder& to, const Run& run, const Q* a, const Q* b, int64_t n,
              Q* y);

}  // namespace pyquant::kernels
