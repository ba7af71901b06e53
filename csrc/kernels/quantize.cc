// SPDX-License-Identifier: Apache-2.0
// quantize to integers, dequantize back.
#include <type_traits>

#include "kernels/half.h"
#include "kernels/pointwise.h"

namespace pyquant::kernels {
namespace {

struct QuantizeOp {
  using Params = RoundParams;
  PYQUANT_INLINE static Params params(ScaleZeroPoint q, Grid grid) { return Params::make(q, grid); }

  template <class Q, class T>
  PYQUANT_INLINE static void scalar(const Params& p, Q& q, T x) {
    q = static_cast<Q>(quantize_value(load(x), p.q, p.grid));
  }

  template <class Q, class T>
  PYQUANT_INLINE static void vector(const Params& p, Q& q, T x) {
    q = static_cast<Q>(round_small(clamp_number(load(x) / p.q.scale, p.lo, p.hi)) + p.q.zero_point);
  }
};

struct DequantizeOp {
  using Params = ScaleZeroPoint;
  PYQUANT_INLINE static Params params(ScaleZeroPoint q, Grid) { return q; }

  template <class Q>
  PYQUANT_INLINE static void scalar(const Params& p, float& x, Q q) {
    x = dequantize_value(q, p);
  }

  template <class Q>
  PYQUANT_INLINE static void vector(const Params& p, float& x, Q q) {
    x = dequantize_value(q, p);
  }
};

}  // namespace

template <class T, class Q>
void quantize(const T* x, Q* q, const ScaleMap& map, const float* scale, const int32_t* zero_point, Grid grid,
              int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, Float16>) {
    if (has_fast_halves()) {
      return for_blocks(x, begin, end, [&](const float* values, int64_t at, int64_t n) {
        dispatch<Pointwise<QuantizeOp, Q, float>>(&map, scale, zero_point, grid, at, at + n, q + at, values);
      });
    }
  }
  dispatch<Pointwise<QuantizeOp, Q, T>>(&map, scale, zero_point, grid, begin, end, q + begin, x + begin);
}

template <class Q>
void dequantize(const Q* q, float* x, const ScaleMap& map, const float* scale, const int32_t* zero_point,
                int64_t begin, int64_t end) {
  dispatch<Pointwise<DequantizeOp, float, Q>>(&map, scale, zero_point, Grid{}, begin, end, x + begin,
                                              q + begin);
}

#define PYQUANT_INSTANTIATE_QUANTIZE(T, Q)                                                                 \
  template void quantize<T, Q>(const T*, Q*, const ScaleMap&, const float*, const int32_t*, Grid, int64_t, \
                               int64_t);
#define PYQUANT_INSTANTIATE(Q)                                                                          \
  PYQUANT_INSTANTIATE_QUANTIZE(float, Q)                                                                \
  PYQUANT_INSTANTIATE_QUANTIZE(BFloat16, Q)                                                             \
  PYQUANT_INSTANTIATE_QUANTIZE(Float16, Q)                                                              \
  template void dequantize<Q>(const Q*, float*, const ScaleMap&, const float*, const int32_t*, int64_t, \
                              int64_t);
PYQUANT_INSTANTIATE(int8_t)
PYQUANT_INSTANTIATE(uint8_t)
PYQUANT_INSTANTIATE(int16_t)
#undef PYQUANT_INSTANTIATE
#undef PYQUANT_INSTANTIATE_QUANTIZE

}  // namespace pyquant::kernels
