// SPDX-License-Identifier: Apache-2.0
// ROPE: one row of one head. Products and their sum are exact where that decides (exact.h).
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/exact.h"
#include "kernels/norm.h"
#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

struct Turn {
  static void scalar(const double* x, const double* turned, const double* sin, const double* cos, int64_t n,
                     double factor, double* v) {
    vector(x, turned, sin, cos, n, factor, v);
  }
  PYQUANT_INLINE static void vector(const double* __restrict x, const double* __restrict turned,
                                    const double* __restrict sin, const double* __restrict cos, int64_t n,
                                    double factor, double* __restrict v) {
    for (int64_t i = 0; i < n; ++i) v[i] = (x[i] * cos[i] + turned[i] * sin[i]) * factor;
  }
};

template <class T>
double real_of(const Rope& plan, T x) {
  if constexpr (std::is_same_v<T, float>) {
    return static_cast<double>(x);
  } else {
    return static_cast<double>(x - plan.in.zero_point) * plan.in.scale;
  }
}

/// What sin multiplies at element i.
template <class T>
double turned(const Rope& plan, const T* x, int64_t i) {
  const int64_t half = plan.size / 2;
  if (plan.neighbours) return i % 2 == 0 ? -real_of(plan, x[i + 1]) : real_of(plan, x[i - 1]);
  return i < half ? -real_of(plan, x[i + half]) : real_of(plan, x[i - half]);
}

}  // namespace

Rounder Rope::rounder(ScaleZeroPoint in, ScaleZeroPoint out, Grid grid, double most) {
  const double terms = 0x1p18 * static_cast<double>(in.scale) * most / out.scale;
  return Rounder::make(out, grid, std::max(0x1p17, terms));
}

template <class T>
void rope_row(const Rope& plan, const T* x, const double* sin, const double* cos, T* y) {
  double a[kRealBlock], b[kRealBlock], s[kRealBlock], c[kRealBlock], v[kRealBlock];
  for (int64_t begin = 0; begin < plan.size; begin += kRealBlock) {
    const int64_t n = std::min(kRealBlock, plan.size - begin);
    for (int64_t i = 0; i < n; ++i) a[i] = real_of(plan, x[begin + i]);
    for (int64_t i = 0; i < n; ++i) b[i] = turned(plan, x, begin + i);
    for (int64_t i = 0; i < n; ++i) s[i] = sin[(begin + i) * plan.sin_step];
    for (int64_t i = 0; i < n; ++i) c[i] = cos[(begin + i) * plan.cos_step];
    const double factor = std::is_same_v<T, float> ? 1.0 : 1.0 / plan.out.scale;
    const double *ra = a, *rb = b, *rs = s, *rc = c;
    dispatch<Turn>(ra, rb, rs, rc, n, factor, static_cast<double*>(v));
    if constexpr (std::is_same_v<T, float>) {
      for (int64_t i = 0; i < n; ++i) y[begin + i] = static_cast<float>(v[i]);
    } else if (round_block(v, n, plan.out, y + begin)) {
      for (int64_t i = 0; i < n; ++i) {
        if (!is_near_step(v[i], plan.out) || !std::isfinite(v[i])) continue;
        const int64_t q =
            round_exact({{a[i], c[i]}, {b[i], s[i]}}, plan.out.scale, 1.0, plan.out.lo, plan.out.hi);
        y[begin + i] = static_cast<T>(q + plan.out.zero_point);
      }
    }
  }
}

template void rope_row(const Rope&, const float*, const double*, const double*, float*);
template void rope_row(const Rope&, const int8_t*, const double*, const double*, int8_t*);
template void rope_row(const Rope&, const uint8_t*, const double*, const double*, uint8_t*);
template void rope_row(const Rope&, const int16_t*, const double*, const double*, int16_t*);

}  // namespace pyquant::kernels
