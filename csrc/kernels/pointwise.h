// SPDX-License-Identifier: Apache-2.0
// Walks a tensor whose elements have scales, and applies an Op to each; private to csrc/kernels.
//
// An Op has `Params` (made once per scale), `scalar(params, in...)`, the definition, and `vector(params,
// in...)`, the same in operations that vectorize.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/convert.h"
#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {

/// Nearest integer, halves away from zero, for |v| < 2^22. 0.49999997 is the float32 below one half: a sum
/// that would wrongly reach the next integer (from 0.49999997, say) stays below it, and the one from an exact
/// half rounds up to it.
PYQUANT_INLINE int32_t round_small(float v) {
  return static_cast<int32_t>(v + __builtin_copysignf(0x1.fffffep-2f, v));
}

/// v limited to [lo, hi]; NaN gives lo. One max and one min instruction.
PYQUANT_INLINE float clamp_number(float v, float lo, float hi) {
  v = v > lo ? v : lo;
  return v < hi ? v : hi;
}

/// y and in point to element `begin`.
template <class Op, class Out, class... In>
struct Pointwise {
  using Params = typename Op::Params;

  static void scalar(const ScaleMap* map, const float* scale, const int32_t* zero_point, Grid grid,
                     int64_t begin, int64_t end, Out* y, const In*... in) {
    walk<false>(map, scale, zero_point, grid, begin, end, y, in...);
  }

  PYQUANT_INLINE static void vector(const ScaleMap* map, const float* scale, const int32_t* zero_point,
                                    Grid grid, int64_t begin, int64_t end, Out* y, const In*... in) {
    walk<true>(map, scale, zero_point, grid, begin, end, y, in...);
  }

 private:
  template <bool kVector>
  PYQUANT_INLINE static void walk(const ScaleMap* map, const float* scale, const int32_t* zero_point,
                                  Grid grid, int64_t begin, int64_t end, Out* y, const In*... in) {
    if (begin >= end) return;
    const int64_t width = map->dims[2];
    const int64_t row = begin / width;
    int64_t k = begin % width, j = row % map->dims[1], i = row / map->dims[1];
    for (int64_t at = 0, n = end - begin; at < n;) {
      const int64_t length = std::min(n - at, width - k);
      const int64_t s = i * map->strides[0] + j * map->strides[1];
      if (map->strides[2] == 0) {
        run<kVector>(length, Op::params({scale[s], zero_point[s]}, grid), y + at, (in + at)...);
      } else {
        columns<kVector>(length, scale + s + k, zero_point + s + k, grid, y + at, (in + at)...);
      }
      at += length;
      k = 0;
      if (++j == map->dims[1]) j = 0, ++i;
    }
  }

  template <bool kVector>
  PYQUANT_INLINE static void run(int64_t n, Params p, Out* __restrict y, const In* __restrict... in) {
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (kVector) {
        Op::vector(p, y[i], in[i]...);
      } else {
        Op::scalar(p, y[i], in[i]...);
      }
    }
  }

  template <bool kVector>
  PYQUANT_INLINE static void columns(int64_t n, const float* __restrict scale,
                                     const int32_t* __restrict zero_point, Grid grid, Out* __restrict y,
                                     const In* __restrict... in) {
    for (int64_t i = 0; i < n; ++i) {
      const Params p = Op::params({scale[i], zero_point[i]}, grid);
      if constexpr (kVector) {
        Op::vector(p, y[i], in[i]...);
      } else {
        Op::scalar(p, y[i], in[i]...);
      }
    }
  }
};

/// The Params of the Ops that round: the qparams, the grid, and the grid's ends counted from the zero point.
struct RoundParams {
  ScaleZeroPoint q;
  Grid grid;
  float lo;
  float hi;

  PYQUANT_INLINE static RoundParams make(ScaleZeroPoint q, Grid grid) {
    return {q, grid, static_cast<float>(grid.qmin - q.zero_point),
            static_cast<float>(grid.qmax - q.zero_point)};
  }
};

}  // namespace pyquant::kernels
