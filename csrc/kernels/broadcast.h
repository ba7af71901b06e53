// SPDX-License-Identifier: Apache-2.0
// NumPy's broadcasting of two operands as runs of elements: where both are contiguous or stand still. Private
// to csrc.
#pragma once

#include <cstdint>

namespace pyquant::kernels {

/// A tensor has at most 2^56 elements, so at most 56 dimensions of 2 or more.
constexpr int kMostDims = 56;

/// The output, row major, as few dimensions as the operands allow; how far each operand goes per step of one.
/// The innermost strides are 0 or 1, not both 0 unless there is one element.
struct Broadcast {
  int rank = 0;
  int64_t dims[kMostDims] = {};
  int64_t a_strides[kMostDims] = {};
  int64_t b_strides[kMostDims] = {};

  int64_t numel() const;
  /// False where the shapes do not broadcast.
  static bool make(const int32_t* a, int a_rank, const int32_t* b, int b_rank, Broadcast* out);
};

/// `n` neighbours of the output from element `out` on, and what they are made of.
struct Run {
  int64_t out;
  int64_t a;
  int64_t b;
  int64_t n;
  int64_t a_stride;  // 0 or 1
  int64_t b_stride;
};

/// Calls use(Run) for the runs of output elements [begin, end), in order.
template <class Use>
void for_each_run(const Broadcast& map, int64_t begin, int64_t end, Use use) {
  if (begin >= end) return;
  const int last = map.rank - 1;
  int64_t index[kMostDims];
  int64_t rest = begin, a = 0, b = 0;
  for (int d = last; d >= 0; --d) {
    index[d] = rest % map.dims[d];
    rest /= map.dims[d];
    a += index[d] * map.a_strides[d];
    b += index[d] * map.b_strides[d];
  }
  while (begin < end) {
    const int64_t left = map.dims[last] - index[last];
    const int64_t n = left < end - begin ? left : end - begin;
    use(Run{begin, a, b, n, map.a_strides[last], map.b_strides[last]});
    begin += n;
    index[last] += n;
    a += n * map.a_strides[last];
    b += n * map.b_strides[last];
    for (int d = last; d > 0 && index[d] == map.dims[d]; --d) {
      a += map.a_strides[d - 1] - map.dims[d] * map.a_strides[d];
      b += map.b_strides[d - 1] - map.dims[d] * map.b_strides[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

}  // namespace pyquant::kernels
