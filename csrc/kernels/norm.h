// SPDX-License-Identifier: Apache-2.0
// RMS_NORM, INSTANCE_NORM and ROPE: rows that are scaled by what they are, or turned. Private to csrc.
//
// Sums of quantized values and squares are exact integers; those of float32 are sums of doubles, in 8 lanes
// (lanes.h) over a row, one after the other over positions. The rest is double, rounded once. Quantized
// RMS_NORM and INSTANCE_NORM are those of the real numbers except within 1e-9 of a step; quantized ROPE is
// correctly rounded. A row of zeros with epsilon 0 is NaN, which is the lowest integer.
#pragma once

#include <cstdint>

#include "kernels/channels.h"
#include "kernels/fused.h"
#include "kernels/reals.h"

namespace pyquant::kernels {

/// y = gamma * x / sqrt(mean(x * x) + epsilon) over rows.
struct RmsNorm {
  double epsilon = 0.0;
  int64_t size = 0;        // of a row
  bool one_gamma = false;  // else one for each element of a row
  ScaleZeroPoint in = {1.0f, 0};
  Rounder out = {};
};
/// Rows [begin, end). T: float, int8_t, uint8_t, int16_t; double: real numbers that are rounded elsewhere.
template <class T>
void rms_norm(const RmsNorm& plan, const T* x, const double* gamma, T* y, int64_t begin, int64_t end);

/// y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, of each channel of [batch, positions, channels].
struct InstanceNorm {
  double epsilon = 0.0;
  int64_t positions = 0;
  int64_t channels = 0;
  bool one_gamma = false, one_beta = false;
  Fused fused = Fused::none;  // of floats and tanh; the limits of the others are in `out`
  ScaleZeroPoint in = {1.0f, 0};
  Rounder out = {};

  static constexpr int64_t kChannels = 32;  // of a unit of work
  int64_t units_per_batch() const { return (channels + kChannels - 1) / kChannels; }
};
/// Units [begin, end) of batch * units_per_batch(). T as above.
template <class T>
void instance_norm(const InstanceNorm& plan, const T* x, const double* gamma, const double* beta, T* y,
                   int64_t begin, int64_t end);

/// y = x * cos + turned(x) * sin over the last dimension. GPT_NEOX turns the halves: (-x[i + size / 2],
/// x[i]); GPT_J neighbours: (-x[2 i + 1], x[2 i]). A table element belongs to the element of y it stands at.
struct Rope {
  bool neighbours = false;
  int64_t size = 0;
  int64_t sin_step = 1, cos_step = 1;  // along a row; 0 or 1
  ScaleZeroPoint in = {1.0f, 0};
  Rounder out = {};

  /// The rounder of a quantized result; `most`: the largest magnitude in the tables.
  static Rounder rounder(ScaleZeroPoint in, ScaleZeroPoint out, Grid grid, double most);
};
template <class T>
void rope_row(const Rope& plan, const T* x, const double* sin, const double* cos, T* y);
/// The same of real numbers, with a grid for each channel of y, whose elements `first` on these are.
void rope_channels(const Rope& plan, const double* x, const double* sin, const double* cos,
                   const ChannelOutput& y, int64_t first);

}  // namespace pyquant::kernels
