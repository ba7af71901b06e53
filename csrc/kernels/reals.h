// SPDX-License-Identifier: Apache-2.0
// Blocks of quantized integers as the real numbers they stand for, and back: what kernels share that compute
// in double. Private to csrc.
#pragma once

#include <cstdint>

#include "pyquant/kernels.h"

namespace pyquant::kernels {

/// Elements that are processed at a time, in buffers on the stack.
constexpr int64_t kRealBlock = 256;

/// x[i] = (q[i * stride] - zero_point) * scale, which is exact; stride 0 or 1. Q: int8_t, uint8_t, int16_t.
template <class Q>
void to_real(const Q* q, int64_t stride, int64_t n, int32_t zero_point, double scale, double* x);

/// Where real numbers, in steps of the scale, become integers: lo and hi are counted from the zero point.
struct Rounder {
  double scale;
  int32_t zero_point;
  int32_t lo;
  int32_t hi;
  double near;  // a distance from a step (an integer and a half) within which a double cannot decide

  /// `magnitude`: how large the terms are, in steps, of which a double was summed up; it is a result itself
  /// where 2^17 (the largest result that does not saturate) is given.
  static Rounder make(ScaleZeroPoint p, Grid grid, double magnitude = 0x1p17);
};

/// q[i] = round_half_away(v[i]), at least lo and at most hi, + zero_point; NaN gives lo. Returns whether any
/// v[i] lies near a step, where that may be wrong (never with near = 0).
template <class Q>
bool round_block(const double* v, int64_t n, const Rounder& to, Q* q);

/// Whether v is one of these.
bool is_near_step(double v, const Rounder& to);

}  // namespace pyquant::kernels
