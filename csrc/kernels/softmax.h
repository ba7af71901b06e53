// SPDX-License-Identifier: Apache-2.0
// Softmax and its logarithm over rows. Private to csrc.
//
// e[i] = exp(beta * (x[i] - the largest)) in double (real.h), their sum in 8 lanes (lanes.h), and e[i] / sum,
// or beta * (x[i] - largest) - log(sum), rounded once: to float32, or to the grid. Of quantized values, which
// lie at most 65,535 integers below the largest, e is a product of two tabulated ones. Quantized results are
// those of the real numbers, except within 1e-9 of a step. A row of float32 with NaN, or without a finite
// value, is NaN.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/reals.h"

namespace pyquant::kernels {

struct Softmax {
  bool log = false;
  float beta = 1.0f;
  int64_t size = 0;       // of a row
  float in_scale = 1.0f;  // of quantized rows; their zero point does not matter
  Rounder out = {};
  std::vector<double> powers = {};  // of quantized rows: e of 0 .. 255 integers, and of 0 .. 255 times 256

  /// Fills `powers` for in_scale and beta.
  void tabulate();
};

/// Rows [begin, end). T: float, int8_t, uint8_t, int16_t; double: real numbers that are rounded elsewhere.
template <class T>
void softmax(const Softmax& plan, const T* x, T* y, int64_t begin, int64_t end);

}  // namespace pyquant::kernels
