// SPDX-License-Identifier: Apache-2.0
// The steps of conversions: private to csrc/circle/ops.
#pragma once

#include "circle/ops/row.h"

namespace pyquant::circle {

/// The numbers as they are stored, whatever their grids (kernels/cast.h has the rules).
Result<Step> prepare_cast(Builder& it);
/// Floats by the rounding contract (pyquant/qparams.h), in float32; integers of another grid rounded once.
Result<Step> prepare_quantize(Builder& it);
/// (q - zero_point) * scale in float32, rounded to nearest even where the output is a 16-bit float.
Result<Step> prepare_dequantize(Builder& it);

}  // namespace pyquant::circle
