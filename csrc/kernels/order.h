// SPDX-License-Identifier: Apache-2.0
// ARG_MAX, ARG_MIN, TOPK_V2: places of values by their order. The order of quantized integers is that of the
// real numbers. Of equal values the first counts; NaN is larger than all (for ARG_MIN: smaller), as in NumPy.
// Private to csrc.
#pragma once

#include <cstdint>

namespace pyquant::kernels {

/// The place along the middle dimension of [outer, size, inner], size >= 1, of lines [begin, end) of outer *
/// inner. T: float, double, int8_t, uint8_t, int16_t, int32_t, int64_t. I: int32_t, int64_t.
template <class T, class I>
void arg_extreme(bool largest, const T* x, int64_t size, int64_t inner, I* y, int64_t begin, int64_t end);

/// The places of the k largest of n values, largest first, in places[0 .. k - 1]; `places` holds n.
template <class T>
void top_places(const T* x, int64_t n, int64_t k, int32_t* places);

}  // namespace pyquant::kernels
