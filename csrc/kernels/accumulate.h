// SPDX-License-Identifier: Apache-2.0
// The accumulators of reductions: what a running sum of each type is, and how it becomes a result. Private to
// csrc/kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/exact.h"
#include "kernels/reals.h"

namespace pyquant::kernels {

template <class T>
constexpr bool kQuantized = std::is_integral_v<T> && sizeof(T) <= 2;

/// Exact for quantized integers; wraps for plain ones.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, float>, double,
                               std::conditional_t<kQuantized<T>, int64_t, uint64_t>>;

/// round_half_away(sum * scale / (count * out scale)).
inline int32_t round_sum(int64_t sum, double scale, double count, const Rounder& out) {
  const double s = static_cast<double>(sum);
  const double v = s * scale / (count * out.scale);
  int64_t q;
  if (near_tie(v, std::fabs(v))) {
    q = round_exact({{s, scale}}, count, out.scale, out.lo, out.hi);
  } else {
    q = static_cast<int64_t>(nearest(v, out.lo, out.hi));
  }
  return static_cast<int32_t>(q) + out.zero_point;
}

/// `sum` is of the integers themselves, `terms` of them.
template <class T>
T finish_sum(Sum<T> sum, int64_t terms, bool mean, ScaleZeroPoint in, const Rounder& out) {
  if constexpr (std::is_same_v<T, float>) {
    return static_cast<float>(mean ? sum / static_cast<double>(terms) : sum);
  } else if constexpr (kQuantized<T>) {
    if (mean && terms == 0) return static_cast<T>(out.lo + out.zero_point);
    return static_cast<T>(
        round_sum(sum - terms * in.zero_point, in.scale, mean ? static_cast<double>(terms) : 1.0, out));
  } else {
    if (!mean) return static_cast<T>(sum);
    return terms == 0 ? T{0} : static_cast<T>(static_cast<int64_t>(sum) / terms);
  }
}

}  // namespace pyquant::kernels
