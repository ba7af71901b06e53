// SPDX-License-Identifier: Apache-2.0
// The loops between integers and doubles.
#include "kernels/reals.h"

#include <algorithm>
#include <cmath>

#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

template <class Q>
struct ToReal {
  static void scalar(const Q* q, int64_t n, int32_t zero_point, double scale, double* x) {
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<double>(q[i] - zero_point) * scale;
  }
  PYQUANT_INLINE static void vector(const Q* __restrict q, int64_t n, int32_t zero_point, double scale,
                                    double* __restrict x) {
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<double>(q[i] - zero_point) * scale;
  }
};

/// One value past the ends is enough to saturate, and small enough for int32_t. NaN gives the lower end.
PYQUANT_INLINE double within(double v, double lo, double hi) {
  v = v > lo ? v : lo;
  return v < hi ? v : hi;
}

/// Nearest integer, halves away from zero; see round_small() in pointwise.h for the constant.
PYQUANT_INLINE int32_t nearest_integer(double v) {
  return static_cast<int32_t>(v + std::copysign(0x1.fffffffffffffp-2, v));
}

/// The distance from an integer that is near a step; no distance is with near = 0.
PYQUANT_INLINE double near_limit(const Rounder& to) { return to.near > 0.0 ? 0.5 - to.near : 1.0; }

template <class Q>
struct RoundBlock {
  static bool scalar(const double* v, int64_t n, const Rounder* to, Q* q) { return vector(v, n, to, q); }
  PYQUANT_INLINE static bool vector(const double* __restrict v, int64_t n, const Rounder* to,
                                    Q* __restrict q) {
    const double least = to->lo - 1.0, most = to->hi + 1.0, limit = near_limit(*to);
    const int32_t lo = to->lo, hi = to->hi, zero_point = to->zero_point;
    int64_t near = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = within(v[i], least, most);
      int32_t r = nearest_integer(x);
      const double distance = std::fabs(x - static_cast<double>(r));
      near |= distance >= limit ? 1 : 0;
      r = r > lo ? r : lo;
      r = r < hi ? r : hi;
      q[i] = static_cast<Q>(r + zero_point);
    }
    return near != 0;
  }
};

}  // namespace

template <class Q>
void to_real(const Q* q, int64_t stride, int64_t n, int32_t zero_point, double scale, double* x) {
  if (stride == 1) return dispatch<ToReal<Q>>(q, n, zero_point, scale, x);
  std::fill(x, x + n, n == 0 ? 0.0 : static_cast<double>(q[0] - zero_point) * scale);
}

Rounder Rounder::make(ScaleZeroPoint p, Grid grid, double magnitude) {
  return {p.scale, p.zero_point, grid.qmin - p.zero_point, grid.qmax - p.zero_point,
          std::min(0.5, magnitude * 0x1p-49)};
}

template <class Q>
bool round_block(const double* v, int64_t n, const Rounder& to, Q* q) {
  return dispatch<RoundBlock<Q>>(v, n, &to, q);
}

bool is_near_step(double v, const Rounder& to) {
  const double x = within(v, to.lo - 1.0, to.hi + 1.0);
  return std::fabs(x - static_cast<double>(nearest_integer(x))) >= near_limit(to);
}

#define PYQUANT_REALS(Q)                                                       \
  template void to_real(const Q*, int64_t, int64_t, int32_t, double, double*); \
  template bool round_block(const double*, int64_t, const Rounder&, Q*);
PYQUANT_REALS(int8_t)
PYQUANT_REALS(uint8_t)
PYQUANT_REALS(int16_t)
#undef PYQUANT_REALS

}  // namespace pyquant::kernels
