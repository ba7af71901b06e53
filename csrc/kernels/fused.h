// SPDX-License-Identifier: Apache-2.0
// Activations that an operator applies to its result before it is rounded. Private to csrc.
#pragma once

#include <cstdint>

#include "kernels/reals.h"

namespace pyquant::kernels {

enum class Fused : uint8_t { none, relu, relu_n1_to_1, relu6, tanh };

/// The integers that a limited real number rounds to are those of the ends and between: rounding keeps order.
/// Nothing to do for tanh.
void limit(Fused fused, Rounder* out);

/// In place, NaN stays. T: float, double, int32_t, int64_t; integers have no tanh.
template <class T>
void activate(Fused fused, T* y, int64_t n);

}  // namespace pyquant::kernels
