// SPDX-License-Identifier: Apache-2.0
// fake_quantize and its straight-through gradient.
#include <algorithm>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/pointwise.h"

namespace pyquant::kernels {
namespace {

struct FakeQuantizeOp {
  using Params = RoundParams;
  PYQUANT_INLINE static Params params(ScaleZeroPoint q, Grid grid) { return Params::make(q, grid); }

  template <class T>
  PYQUANT_INLINE static void scalar(const Params& p, T& y, T x) {
    store(dequantize_value(quantize_value(load(x), p.q, p.grid), p.q), y);
  }

  // Clamping to [qmin - zero_point, qmax - zero_point] before rounding gives the same integer: the ends are
  // integers. The last + 0 is for compilers that make trunc(v) of float(int(v)), and so -0 of -0.3; where
  // that is not, it changes nothing.
  template <class T>
  PYQUANT_INLINE static void vector(const Params& p, T& y, T x) {
    const int32_t steps = round_small(clamp_number(load(x) / p.q.scale, p.lo, p.hi));
    store(static_cast<float>(steps) * p.q.scale + 0.0f, y);
  }
};

struct BackwardOp {
  using Params = RoundParams;
  PYQUANT_INLINE static Params params(ScaleZeroPoint q, Grid grid) { return Params::make(q, grid); }

  template <class T, class X>
  PYQUANT_INLINE static void scalar(const Params& p, T& dx, T dy, X x) {
    dx = is_representable(load(x), p.q, p.grid) ? dy : T{};
  }

  // One step of room on both sides separates clamped values from those on the last integer. One
  // comparison: gcc does not vectorize a conjunction of two.
  template <class T, class X>
  PYQUANT_INLINE static void vector(const Params& p, T& dx, T dy, X x) {
    const int32_t steps = round_small(clamp_number(load(x) / p.q.scale, p.lo - 1.0f, p.hi + 1.0f));
    const int32_t lo = static_cast<int32_t>(p.lo), hi = static_cast<int32_t>(p.hi);
    const int32_t limited = std::min(std::max(steps, lo), hi);
    keep(limited == steps, dy, dx);
  }

 private:
  PYQUANT_INLINE static void keep(bool yes, float from, float& to) { to = yes ? from : 0.0f; }
  template <class T>
  PYQUANT_INLINE static void keep(bool yes, T from, T& to) {
    to.bits = yes ? from.bits : static_cast<uint16_t>(0);
  }
};

}  // namespace

template <class T>
void fake_quantize(const T* x, T* y, const ScaleMap& map, const float* scale, const int32_t* zero_point,
                   Grid grid, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, Float16>) {
    if (has_fast_halves()) {
      return for_blocks(x, begin, end, [&](const float* values, int64_t at, int64_t n) {
        float rounded[kHalves];
        dispatch<Pointwise<FakeQuantizeOp, float, float>>(&map, scale, zero_point, grid, at, at + n, rounded,
                                                          values);
        narrow(rounded, n, y + at);
      });
    }
  }
  dispatch<Pointwise<FakeQuantizeOp, T, T>>(&map, scale, zero_point, grid, begin, end, y + begin, x + begin);
}

template <class T>
void fake_quantize_backward(const T* dy, const T* x, T* dx, const ScaleMap& map, const float* scale,
                            const int32_t* zero_point, Grid grid, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, Float16>) {
    if (has_fast_halves()) {
      return for_blocks(x, begin, end, [&](const float* values, int64_t at, int64_t n) {
        dispatch<Pointwise<BackwardOp, T, T, float>>(&map, scale, zero_point, grid, at, at + n, dx + at,
                                                     dy + at, values);
      });
    }
  }
  dispatch<Pointwise<BackwardOp, T, T, T>>(&map, scale, zero_point, grid, begin, end, dx + begin, dy + begin,
                                           x + begin);
}

#define PYQUANT_INSTANTIATE(T)                                                                               \
  template void fake_quantize<T>(const T*, T*, const ScaleMap&, const float*, const int32_t*, Grid, int64_t, \
                                 int64_t);                                                                   \
  template void fake_quantize_backward<T>(const T*, const T*, T*, const ScaleMap&, const float*,             \
                                          const int32_t*, Grid, int64_t, int64_t);
PYQUANT_INSTANTIATE(float)
PYQUANT_INSTANTIATE(BFloat16)
PYQUANT_INSTANTIATE(Float16)
#undef PYQUANT_INSTANTIATE

}  // namespace pyquant::kernels
