// SPDX-License-Identifier: Apache-2.0
// The steps of operators that choose values or make them: private to csrc/circle/ops.
#pragma once

#include "circle/ops/row.h"

namespace pyquant::circle {

// gather_steps.cc. An index that is negative or too large is an error.
Result<Step> prepare_gather(Builder& it);
Result<Step> prepare_gather_nd(Builder& it);
// choose.cc
Result<Step> prepare_select(Builder& it);
/// An index outside the depth gives off values only.
Result<Step> prepare_one_hot(Builder& it);
Result<Step> prepare_fill(Builder& it);
/// Element i is start + i * step: of floats the nearest float32 to the value in double.
Result<Step> prepare_range(Builder& it);

}  // namespace pyquant::circle
