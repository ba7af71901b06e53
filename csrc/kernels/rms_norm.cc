// SPDX-License-Identifier: Apache-2.0
// RMS_NORM over rows.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/lanes.h"
#include "kernels/norm.h"
#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

/// The exact sum of (q - zero_point)^2, each below 2^32.
template <class Q>
struct SquareSum {
  static int64_t scalar(const Q* q, int64_t n, int32_t zero_point) { return vector(q, n, zero_point); }
  PYQUANT_INLINE static int64_t vector(const Q* q, int64_t n, int32_t zero_point) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t d = q[i] - zero_point;
      sum += static_cast<int64_t>(d) * d;
    }
    return sum;
  }
};

template <class T>
double mean_square(const RmsNorm& plan, const T* x) {
  const auto n = static_cast<double>(plan.size);
  if constexpr (std::is_floating_point_v<T>) {
    Lanes lanes;
    add_squares_to_lanes(x, plan.size, &lanes);
    return lanes.total() / n;
  } else {
    const double scale = plan.in.scale;
    return static_cast<double>(dispatch<SquareSum<T>>(x, plan.size, plan.in.zero_point)) * (scale * scale) /
           n;
  }
}

/// v[i] = x[i] * factor * gamma[i * kStep].
template <int kStep>
struct Weigh {
  static void scalar(const double* x, const double* gamma, int64_t n, double factor, double* v) {
    vector(x, gamma, n, factor, v);
  }
  PYQUANT_INLINE static void vector(const double* __restrict x, const double* __restrict gamma, int64_t n,
                                    double factor, double* __restrict v) {
    for (int64_t i = 0; i < n; ++i) v[i] = x[i] * factor * gamma[i * kStep];
  }
};

template <class T>
void load(const T* x, int64_t n, const RmsNorm& plan, double* out) {
  if constexpr (std::is_floating_point_v<T>) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(x[i]);
  } else {
    to_real(x, 1, n, plan.in.zero_point, plan.in.scale, out);
  }
}

template <class T>
void store(const double* v, int64_t n, const Rounder& out, T* y) {
  if constexpr (std::is_floating_point_v<T>) {
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(v[i]);
  } else {
    round_block(v, n, out, y);
  }
}

template <class T>
void row(const RmsNorm& plan, const T* x, const double* gamma, T* y) {
  double factor = 1.0 / std::sqrt(mean_square(plan, x) + plan.epsilon);
  if constexpr (!std::is_floating_point_v<T>) factor /= plan.out.scale;
  double values[kRealBlock], v[kRealBlock];
  for (int64_t i = 0; i < plan.size; i += kRealBlock) {
    const int64_t n = std::min(kRealBlock, plan.size - i);
    load(x + i, n, plan, values);
    const double *from = values, *weights = plan.one_gamma ? gamma : gamma + i;
    if (plan.one_gamma) {
      dispatch<Weigh<0>>(from, weights, n, factor, static_cast<double*>(v));
    } else {
      dispatch<Weigh<1>>(from, weights, n, factor, static_cast<double*>(v));
    }
    store(v, n, plan.out, y + i);
  }
}

}  // namespace

template <class T>
void rms_norm(const RmsNorm& plan, const T* x, const double* gamma, T* y, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) row(plan, x + r * plan.size, gamma, y + r * plan.size);
}

template void rms_norm(const RmsNorm&, const float*, const double*, float*, int64_t, int64_t);
template void rms_norm(const RmsNorm&, const double*, const double*, double*, int64_t, int64_t);
template void rms_norm(const RmsNorm&, const int8_t*, const double*, int8_t*, int64_t, int64_t);
template void rms_norm(const RmsNorm&, const uint8_t*, const double*, uint8_t*, int64_t, int64_t);
template void rms_norm(const RmsNorm&, const int16_t*, const double*, int16_t*, int64_t, int64_t);

}  // namespace pyquant::kernels
