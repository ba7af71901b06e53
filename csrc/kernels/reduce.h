// SPDX-License-Identifier: Apache-2.0
// MEAN, SUM, REDUCE_MAX, REDUCE_MIN over any axes, and CUMSUM along one. Private to csrc.
//
// Sums of quantized and plain integers are exact (plain ones wrap to their type at the end); a quantized
// result is correctly rounded. Sums of float32 are sums of doubles, rounded once: where the last axis is
// reduced, each run of it in 8 lanes (lanes.h) and the runs one after the other; else one after the other.
// The mean of plain integers rounds to 0. Largest and smallest keep NaN. Of nothing the sum is 0, the mean
// NaN (0 of plain integers), the largest the lowest value of the type.
#pragma once

#include <cstdint>

#include "kernels/channels.h"
#include "kernels/nest.h"
#include "kernels/reals.h"

namespace pyquant::kernels {

enum class Reduction : uint8_t { sum, mean, max, min };

/// A row-major tensor whose dimensions are kept or reduced; neighbours of one kind are one.
struct ReduceMap {
  /// A tensor has at most 2^56 elements, so at most 56 dimensions of 2 or more.
  static constexpr int kMost = 56;

  int kept = 0, reduced = 0;  // outer dimensions of each kind, outermost first
  int64_t kept_dims[kMost] = {}, kept_strides[kMost] = {};
  int64_t reduced_dims[kMost] = {}, reduced_strides[kMost] = {};
  bool last_reduced = false;
  int64_t inner = 1;      // the last dimension: elements of a run
  int64_t outer = 1;      // products of kept_dims
  int64_t reduced_n = 1;  // values in one result

  static constexpr int64_t kColumns = 256;
  /// Units of work: a result each where the last dimension is reduced, else up to kColumns neighbours.
  int64_t units() const { return last_reduced ? outer : outer * columns(); }
  int64_t columns() const { return (inner + kColumns - 1) / kColumns; }
  int64_t results() const { return last_reduced ? outer : outer * inner; }

  /// is_reduced[d]: whether dimension d is an axis.
  static void make(const int32_t* shape, int rank, const bool* is_reduced, ReduceMap* out);
};

struct Reduce {
  Reduction kind = Reduction::sum;
  ReduceMap map;
  // Of quantized tensors.
  ScaleZeroPoint in = {1.0f, 0};
  Rounder out = {};
};

/// Units [begin, end). T: float, int8_t, uint8_t, int16_t (quantized), int32_t, int64_t (plain).
template <class T>
void reduce(const Reduce& plan, const T* x, T* y, int64_t begin, int64_t end);

/// The same of real numbers, with a grid for each channel of the output: results [begin, end), which `kept`
/// counts; `reduced` are the values of one. `products`: room for all of these, of one thread. Of nothing the
/// mean, the largest and the smallest are the ends of the type.
void reduce_channels(Reduction kind, const Nest<1>& kept, const Nest<1>& reduced, const double* x,
                     Product* products, const ChannelOutput& y, int64_t begin, int64_t end);

/// Running sums along the middle dimension of [outer, size, inner].
struct Cumsum {
  int64_t size = 0, inner = 1;
  bool exclusive = false, reverse = false;
  ScaleZeroPoint in = {1.0f, 0};
  Rounder out = {};
};
/// Lines [begin, end) of outer * inner.
template <class T>
void cumsum(const Cumsum& plan, const T* x, T* y, int64_t begin, int64_t end);
/// The same of real numbers, with a grid for each channel of the output. `products`: room for `size`.
void cumsum_channels(const Cumsum& plan, const double* x, Product* products, const ChannelOutput& y,
                     int64_t begin, int64_t end);

}  // namespace pyquant::kernels
