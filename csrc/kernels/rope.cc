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

/// v = (x * cos + sign * turned * sin) * factor; each table walks or stands still.
struct Turn {
  static void scalar(const double* x, const double* turned, const double* sin, int64_t sin_step,
                     const double* cos, int64_t cos_step, int64_t n, double factor, double* v) {
    for (int64_t i = 0; i < n; ++i)
      v[i] = (x[i] * cos[i * cos_step] + turned[i] * sin[i * sin_step]) * factor;
  }
  PYQUANT_INLINE static void vector(const double* __restrict x, const double* __restrict turned,
                                    const double* __restrict sin, int64_t sin_step,
                                    const double* __restrict cos, int64_t cos_step, int64_t n, double factor,
                                    double* __restrict v) {
    if (sin_step == 1 && cos_step == 1) {
      for (int64_t i = 0; i < n; ++i) v[i] = (x[i] * cos[i] + turned[i] * sin[i]) * factor;
    } else {
      scalar(x, turned, sin, sin_step, cos, cos_step, n, factor, v);
    }
  }
};

void load(const Rope&, const float* x, int64_t n, double* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(x[i]);
}
template <class Q>
void load(const Rope& plan, const Q* x, int64_t n, double* out) {
  to_real(x, 1, n, plan.in.zero_point, plan.in.scale, out);
}

template <class T>
void store(const Rope& plan, const double* v, const double* x, const double* turned, const double* sin,
           const double* cos, int64_t n, T* y) {
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(v[i]);
  } else {
    if (!round_block(v, n, plan.out, y)) return;
    for (int64_t i = 0; i < n; ++i) {
      if (!is_near_step(v[i], plan.out) || !std::isfinite(v[i])) continue;
      const int64_t q = round_exact({{x[i], cos[i * plan.cos_step]}, {turned[i], sin[i * plan.sin_step]}},
                                    plan.out.scale, 1.0, plan.out.lo, plan.out.hi);
      y[i] = static_cast<T>(q + plan.out.zero_point);
    }
  }
}

/// n elements of y from element `first` on.
template <class T>
void turn(const Rope& plan, const double* x, const double* turned, const double* sin, const double* cos,
          int64_t first, int64_t n, T* y) {
  double v[kRealBlock];
  const double *s = sin + first * plan.sin_step, *c = cos + first * plan.cos_step;
  const double factor = std::is_same_v<T, float> ? 1.0 : 1.0 / plan.out.scale;
  dispatch<Turn>(x, turned, s, plan.sin_step, c, plan.cos_step, n, factor, static_cast<double*>(v));
  store(plan, v, x, turned, s, c, n, y + first);
}

template <class T>
void turn_halves(const Rope& plan, const T* x, const double* sin, const double* cos, T* y) {
  const int64_t half = plan.size / 2;
  double low[kRealBlock], high[kRealBlock], minus[kRealBlock];
  for (int64_t i = 0; i < half; i += kRealBlock) {
    const int64_t n = std::min(kRealBlock, half - i);
    load(plan, x + i, n, low);
    load(plan, x + half + i, n, high);
    for (int64_t k = 0; k < n; ++k) minus[k] = -high[k];
    turn(plan, low, minus, sin, cos, i, n, y);
    turn(plan, high, low, sin, cos, half + i, n, y);
  }
}

template <class T>
void turn_neighbours(const Rope& plan, const T* x, const double* sin, const double* cos, T* y) {
  double values[kRealBlock], turned[kRealBlock];
  for (int64_t i = 0; i < plan.size; i += kRealBlock) {
    const int64_t n = std::min(kRealBlock, plan.size - i);
    load(plan, x + i, n, values);
    for (int64_t k = 0; k < n; k += 2) turned[k] = -values[k + 1], turned[k + 1] = values[k];
    turn(plan, values, turned, sin, cos, i, n, y);
  }
}

}  // namespace

Rounder Rope::rounder(ScaleZeroPoint in, ScaleZeroPoint out, Grid grid, double most) {
  const double terms = 0x1p18 * static_cast<double>(in.scale) * most / out.scale;
  return Rounder::make(out, grid, std::max(0x1p17, terms));
}

template <class T>
void rope_row(const Rope& plan, const T* x, const double* sin, const double* cos, T* y) {
  if (plan.neighbours) return turn_neighbours(plan, x, sin, cos, y);
  turn_halves(plan, x, sin, cos, y);
}

void rope_channels(const Rope& plan, const double* x, const double* sin, const double* cos,
                   const ChannelOutput& y, int64_t first) {
  const int64_t half = plan.size / 2;
  for (int64_t i = 0; i < plan.size; ++i) {
    const bool low = plan.neighbours ? i % 2 == 0 : i < half;
    const double other = x[plan.neighbours ? i ^ 1 : low ? i + half : i - half];
    const Product products[] = {{x[i], cos[i * plan.cos_step]},
                                {low ? -other : other, sin[i * plan.sin_step]}};
    y.round_sum(first + i, products, 2);
  }
}

template void rope_row(const Rope&, const float*, const double*, const double*, float*);
template void rope_row(const Rope&, const int8_t*, const double*, const double*, int8_t*);
template void rope_row(const Rope&, const uint8_t*, const double*, const double*, uint8_t*);
template void rope_row(const Rope&, const int16_t*, const double*, const double*, int16_t*);

}  // namespace pyquant::kernels
