// SPDX-License-Identifier: Apache-2.0
// The rounding contract, one value at a time: how a float becomes an integer on a grid and comes back.
// These are the definitions that every vector version equals bit for bit; loops over arrays are in kernels.h.
#pragma once

#include <cmath>
#include <cstdint>

namespace pyquant {

/// The integers that a format uses, both ends included. At most 16 bits: -32768 <= qmin < qmax <= 65535.
struct Grid {
  int32_t qmin;
  int32_t qmax;
};

/// What maps a grid to real values: real = (q - zero_point) * scale.
struct ScaleZeroPoint {
  float scale;
  int32_t zero_point;
};

/// q = clamp(round_half_away_from_zero(x / scale) + zero_point, qmin, qmax), in float32.
/// NaN becomes qmin (what the runtimes do), infinities saturate. The scale is positive and finite, the zero
/// point on the grid.
inline int32_t quantize_value(float x, ScaleZeroPoint p, Grid grid) {
  const float q = std::round(x / p.scale) + static_cast<float>(p.zero_point);
  if (!(q > static_cast<float>(grid.qmin))) return grid.qmin;  // also NaN
  return q < static_cast<float>(grid.qmax) ? static_cast<int32_t>(q) : grid.qmax;
}

/// x' = (q - zero_point) * scale, in float32. Never -0.
inline float dequantize_value(int32_t q, ScaleZeroPoint p) {
  return static_cast<float>(q - p.zero_point) * p.scale;
}

/// True when x rounds to an integer of the grid without clamping; where the straight-through gradient passes.
/// False for NaN.
inline bool is_representable(float x, ScaleZeroPoint p, Grid grid) {
  const float q = std::round(x / p.scale) + static_cast<float>(p.zero_point);
  return q >= static_cast<float>(grid.qmin) && q <= static_cast<float>(grid.qmax);
}

/// The qparams of a range.
///
/// Asymmetric: the range is widened to contain 0; scale = (hi - lo) / (qmax - qmin) and
/// zero_point = clamp(round_half_away(qmin - lo / scale)). Symmetric: scale = max(|lo|, |hi|) / qmax,
/// zero_point = 0. Computed in double, the scale stored as float32. A range whose scale is no normal float32
/// number (all zeros, say) gives scale 1. A range that is not one (NaN, Inf, lo > hi, which is what an
/// observer without data holds), or that overflows, gives scale NaN, so that it cannot pass for a result.
/// Where there is no better zero point, it is 0 clamped to the grid.
ScaleZeroPoint choose_qparams(float lo, float hi, Grid grid, bool symmetric);

/// clamp(round_half_away(bias / scale)) to a signed integer of 32 or 64 bits, in double. NaN becomes the
/// smallest.
int64_t quantize_bias(float bias, float scale, int bits);

/// The float32 nearest to q * scale, in double.
float dequantize_bias(int64_t q, float scale);

}  // namespace pyquant
