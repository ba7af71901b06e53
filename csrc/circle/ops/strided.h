// SPDX-License-Identifier: Apache-2.0
// What STRIDED_SLICE takes of its input: private to csrc/circle/ops.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "circle/ops/view.h"

namespace pyquant::circle {

/// For each dimension of the input: the first element, the step, and how many; `shape` is the output's.
struct StridedRange {
  std::vector<int64_t> begin, step, count;
  std::vector<int32_t> shape;
};

/// By TFLite's rules: masks choose the ends, negative places count from the end, ends are clamped, a shrunk
/// dimension is one element. Dimensions behind the given ones are whole; new_axis gives a dimension of 1.
/// Nothing for an ellipsis, an offset, a step of 0, a shrunk element outside the input, or more dimensions
/// than there are.
std::optional<StridedRange> strided_range(const OpView& op, const std::vector<int32_t>& shape,
                                          const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
                                          const std::vector<int64_t>& step);

}  // namespace pyquant::circle
