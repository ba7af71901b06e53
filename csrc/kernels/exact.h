// SPDX-License-Identifier: Apache-2.0
// Correct rounding of a sum of products to an integer: half away from zero, once, saturated. Private to csrc.
//
// Loops compute in double and ask near_tie(): where the distance of the double from the nearest step (an
// integer and a half) is more than its own error, rounding it is rounding the real number. Elsewhere, which
// is rare, they call round_exact(), which compares with the step in exact arithmetic. So the result does not
// depend on how the double was computed:
//
//   const double v = (acc * (sx * sw) + bias * sb) / sy;                       // any order, some roundings
//   int64_t q = nearest(v, lo, hi);
//   if (near_tie(v, (std::abs(acc * (sx * sw)) + std::abs(bias * sb)) / sy))
//     q = round_exact({{acc, sx * sw}, {bias, sb}}, sy, 1, lo, hi);            // sx * sw: exact, two float32
//   out = q + zero_point;                                                      // lo, hi: qmin, qmax -
//   zero_point
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "kernels/simd.h"

namespace pyquant::kernels {

/// a * b; both are exact.
struct Product {
  double a;
  double b;
};

constexpr int kMostProducts = 8;

/// round_half_away((sum of the products) / (d1 * d2)), at least lo and at most hi; d1, d2 > 0. Correctly
/// rounded: there is no rounding before. All values are finite; a product and d1 * d2 * hi lie between 2^-900
/// and 2^900 in magnitude or are 0 (products of a few float32 and integers do); -2^50 < lo <= hi < 2^50. Any
/// n: up to kMostProducts it is quick where a step is near, too.
int64_t round_exact(const Product* products, int64_t n, double d1, double d2, int64_t lo, int64_t hi);
inline int64_t round_exact(std::initializer_list<Product> products, double d1, double d2, int64_t lo,
                           int64_t hi) {
  return round_exact(products.begin(), static_cast<int64_t>(products.size()), d1, d2, lo, hi);
}

/// Whether a double that was computed in up to 16 roundings could lie on the other side of a step than the
/// real number: `magnitude` is the sum of the magnitudes of what was added up (of |v| itself, when it is one
/// product).
PYQUANT_INLINE bool near_tie(double v, double magnitude) {
  const double size = std::fabs(v);
  const double from_step = std::fabs(size - std::floor(size) - 0.5);
  return !(from_step > magnitude * 0x1p-48);  // also where something is NaN or infinite
}

/// round_half_away(v), at least lo and at most hi; right where near_tie() says no. NaN becomes lo.
PYQUANT_INLINE double nearest(double v, double lo, double hi) {
  const double r = std::copysign(std::floor(std::fabs(v) + 0.5), v);
  return !(r > lo) ? lo : r < hi ? r : hi;
}

}  // namespace pyquant::kernels
