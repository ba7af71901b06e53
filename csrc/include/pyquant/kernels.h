// SPDX-License-Identifier: Apache-2.0
// The loops over arrays: observe, fake-quantize, quantize, pack. Plain pointers and counts; no torch, no exceptions, no allocation.
// Splitting work among threads is the caller's business: each kernel takes the part it shall do.
#pragma once

#include <cstdint>

#include "pyquant/qparams.h"

namespace pyquant::kernels {

/// Which version of a kernel runs. `scalar` is the definition, the others equal it bit for bit.
enum class Isa : int { scalar = 0, portable = 1, avx2 = 2, avx512 = 3 };

/// The best that this CPU has, chosen once.
Isa best_isa();
/// The one in use: best_isa() unless set_isa() said otherwise.
Isa active_isa();
/// For tests and benchmarks. False, and nothing changes, where the CPU lacks it.
bool set_isa(Isa isa);
const char* isa_name(Isa isa);

/// 16-bit floats as they lie in memory.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

/// Where an element's scale is. A contiguous tensor is seen as dims[0] x dims[1] x dims[2]; element (i, j, k) uses
/// scale number i * strides[0] + j * strides[1] + k * strides[2]. strides[2] is 0 or 1.
struct ScaleMap {
  int64_t dims[3];
  int64_t strides[3];

  int64_t numel() const { return dims[0] * dims[1] * dims[2]; }
  static ScaleMap per_tensor(int64_t numel);
  /// x is [outer, channels, inner]; the scale is [channels].
  static ScaleMap per_channel(int64_t outer, int64_t channels, int64_t inner);
  /// x is [outer, groups * group, inner]; the scale is [outer, groups, inner].
  static ScaleMap per_group(int64_t outer, int64_t groups, int64_t group, int64_t inner);
};

/// A part of dims[0] x dims[1] x dims[2]: [begin, end) in each.
struct Box {
  int64_t begin[3];
  int64_t end[3];
};
/// The dimension that threads may split without sharing a scale, or -1 if all elements share one (then split dims[2]).
int independent_dim(const ScaleMap& map);

// --- pointwise: elements [begin, end) of x. T: float, BFloat16, Float16 (computed in float32, stored to nearest even).

/// y = dequantize(quantize(x)).
template <class T>
void fake_quantize(const T* x, T* y, const ScaleMap& map, const float* scale, const int32_t* zero_point, Grid grid,
                   int64_t begin, int64_t end);
/// dx = dy where x is representable, else 0.
template <class T>
void fake_quantize_backward(const T* dy, const T* x, T* dx, const ScaleMap& map, const float* scale,
                            const int32_t* zero_point, Grid grid, int64_t begin, int64_t end);
/// Q: int8_t, uint8_t, int16_t; it must hold the grid.
template <class T, class Q>
void quantize(const T* x, Q* q, const ScaleMap& map, const float* scale, const int32_t* zero_point, Grid grid,
              int64_t begin, int64_t end);
template <class Q>
void dequantize(const Q* q, float* x, const ScaleMap& map, const float* scale, const int32_t* zero_point,
                int64_t begin, int64_t end);

// --- reductions

/// Widens lo[s], hi[s] (one per scale) to the finite values of the box; returns how many values were not finite.
/// -0 counts as +0. Start at lo = +inf, hi = -inf.
template <class T>
int64_t minmax(const T* x, const ScaleMap& map, const Box& box, float* lo, float* hi);

}  // namespace pyquant::kernels
