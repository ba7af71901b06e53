// SPDX-License-Identifier: Apache-2.0
// Softmax: three passes over a row. Exponentials of a short row are kept between the second and the third,
// those past its end are computed again.
#include "kernels/softmax.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/lanes.h"
#include "kernels/real.h"
#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

constexpr int64_t kKept = 2048;

template <class T>
struct Largest {
  static T scalar(const T* x, int64_t n) {
    T most = x[0];
    for (int64_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most;
  }
  PYQUANT_INLINE static T vector(const T* x, int64_t n) {
    if constexpr (std::is_integral_v<T>) {
      T most = x[0];
      for (int64_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
      return most;
    } else {
      // 16 of them, which vectorize; the largest is the same. NaN is passed over (or all there is).
      T most[16];
      for (int l = 0; l < 16; ++l) most[l] = x[0];
      int64_t i = 0;
      for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; ++l) most[l] = x[i + l] > most[l] ? x[i + l] : most[l];
      }
      for (int l = 1; l < 16; ++l) most[0] = most[l] > most[0] ? most[l] : most[0];
      for (; i < n; ++i) most[0] = x[i] > most[0] ? x[i] : most[0];
      return most[0];
    }
  }
};

template <class T>
struct Shift {
  static void scalar(const T* x, int64_t n, double largest, double beta, double* out) {
    vector(x, n, largest, beta, out);
  }
  PYQUANT_INLINE static void vector(const T* __restrict x, int64_t n, double largest, double beta,
                                    double* __restrict out) {
    for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<double>(x[i]) - largest) * beta;
  }
};

struct ExpBlock {
  static void scalar(double* x, int64_t n) { vector(x, n); }
  PYQUANT_INLINE static void vector(double* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = real_exp(x[i]);
  }
};

/// e of quantized values by their distance from the largest.
template <class Q>
struct Powers {
  static void scalar(const Q* x, int64_t n, int32_t largest, const double* powers, double* out) {
    vector(x, n, largest, powers, out);
  }
  PYQUANT_INLINE static void vector(const Q* __restrict x, int64_t n, int32_t largest,
                                    const double* __restrict powers, double* __restrict out) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t below = largest - x[i];
      out[i] = sizeof(Q) == 1 ? powers[below] : powers[below & 255] * powers[256 + (below >> 8)];
    }
  }
};

/// v[i] = v[i] * factor, or v[i] * factor - offset.
struct Finish {
  static void scalar(const double* x, int64_t n, double factor, double offset, double* v) {
    vector(x, n, factor, offset, v);
  }
  PYQUANT_INLINE static void vector(const double* __restrict x, int64_t n, double factor, double offset,
                                    double* __restrict v) {
    for (int64_t i = 0; i < n; ++i) v[i] = (x[i] - offset) * factor;
  }
};

/// beta * (x - largest).
template <class T>
void shifted(const Softmax& plan, const T* x, int64_t n, T largest, double* out) {
  if constexpr (std::is_floating_point_v<T>) {
    dispatch<Shift<T>>(x, n, static_cast<double>(largest), static_cast<double>(plan.beta), out);
  } else {
    to_real(x, 1, n, largest, static_cast<double>(plan.in_scale) * plan.beta, out);
  }
}

template <class T>
void exponentials(const Softmax& plan, const T* x, int64_t n, T largest, double* out) {
  if constexpr (std::is_floating_point_v<T>) {
    shifted(plan, x, n, largest, out);
    dispatch<ExpBlock>(out, n);
  } else {
    dispatch<Powers<T>>(x, n, static_cast<int32_t>(largest), plan.powers.data(), out);
  }
}

template <class T>
void finish(const Softmax& plan, const double* x, int64_t n, double factor, double offset, T* y) {
  double v[kRealBlock];
  if constexpr (!std::is_floating_point_v<T>) factor /= plan.out.scale;
  dispatch<Finish>(x, n, factor, offset, static_cast<double*>(v));
  if constexpr (std::is_floating_point_v<T>) {
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(v[i]);
  } else {
    round_block(v, n, plan.out, y);
  }
}

template <class T>
void softmax_row(const Softmax& plan, const T* x, T* y) {
  double kept[kKept], block[kRealBlock];
  const int64_t size = plan.size;
  const T largest = dispatch<Largest<T>>(x, size);
  Lanes lanes;
  for (int64_t i = 0; i < size; i += kRealBlock) {
    const int64_t n = std::min(kRealBlock, size - i);
    double* const e = i + n <= kKept ? kept + i : block;
    exponentials(plan, x + i, n, largest, e);
    add_to_lanes(static_cast<const double*>(e), n, &lanes);
  }
  const double sum = lanes.total(), log_sum = plan.log ? std::log(sum) : 0.0;
  for (int64_t i = 0; i < size; i += kRealBlock) {
    const int64_t n = std::min(kRealBlock, size - i);
    if (plan.log) {
      shifted(plan, x + i, n, largest, block);
      finish(plan, block, n, 1.0, log_sum, y + i);
    } else if (i + n <= kKept) {
      finish(plan, kept + i, n, 1.0 / sum, 0.0, y + i);
    } else {
      exponentials(plan, x + i, n, largest, block);
      finish(plan, block, n, 1.0 / sum, 0.0, y + i);
    }
  }
}

}  // namespace

void Softmax::tabulate() {
  const double step = static_cast<double>(in_scale) * beta;
  powers.resize(512);
  for (int i = 0; i < 256; ++i) {
    powers[static_cast<size_t>(i)] = real_exp(-step * i);
    powers[static_cast<size_t>(256 + i)] = real_exp(-step * (256 * i));
  }
}

template <class T>
void softmax(const Softmax& plan, const T* x, T* y, int64_t begin, int64_t end) {
  if (plan.size == 0) return;
  for (int64_t row = begin; row < end; ++row) softmax_row(plan, x + row * plan.size, y + row * plan.size);
}

template void softmax(const Softmax&, const float*, float*, int64_t, int64_t);
template void softmax(const Softmax&, const double*, double*, int64_t, int64_t);
template void softmax(const Softmax&, const int8_t*, int8_t*, int64_t, int64_t);
template void softmax(const Softmax&, const uint8_t*, uint8_t*, int64_t, int64_t);
template void softmax(const Softmax&, const int16_t*, int16_t*, int64_t, int64_t);

}  // namespace pyquant::kernels
