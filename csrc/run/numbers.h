// SPDX-License-Identifier: Apache-2.0
// Real numbers to the integers of a tensor and back, for hosts that have floats
// (csrc/include/pyquant/qparams.h is the rule). Per tensor and per channel.
#pragma once

#include <cstdint>

#include "circle/ir.h"
#include "pyquant/status.h"

namespace pyquant::run {

/// Whether to_integers and to_floats know the tensor's dtype: int8, uint8, int16 with qparams.
bool has_numbers(const circle::Tensor& tensor);
/// `count` float32 -> integers of `tensor` at `out`, whose shape is `shape`. Requires has_numbers.
void to_integers(const circle::Tensor& tensor, const std::vector<int32_t>& shape, const float* values,
                 void* out);
/// The inverse.
void to_floats(const circle::Tensor& tensor, const std::vector<int32_t>& shape, const void* integers,
               float* out);

}  // namespace pyquant::run
