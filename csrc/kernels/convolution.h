// SPDX-License-Identifier: Apache-2.0
// Convolutions of [batch, height, width, channels]: patches of x as rows of a matrix product (dot.h), and
// depthwise filters directly. Private to csrc.
#pragma once

#include <cstdint>

#include "kernels/dot.h"

namespace pyquant::kernels {

/// Output (b, i, j) sees x at rows i * stride[0] - before[0] + u * dilation[0], u < filter[0], columns
/// likewise; what lies outside x is its zero point.
struct Window {
  int64_t batch, channels;
  int64_t size[2];    // of x: height, width
  int64_t output[2];  // of y
  int64_t filter[2];
  int64_t stride[2];
  int64_t dilation[2];
  int64_t before[2];  // padding above and to the left

  int64_t positions() const { return batch * output[0] * output[1]; }
};

/// The first element of x that an output position sees; may be outside.
struct Position {
  int64_t batch, row, column;

  Position(const Window& w, int64_t at)
      : batch(at / (w.output[0] * w.output[1])),
        row(at / w.output[1] % w.output[0] * w.stride[0] - w.before[0]),
        column(at % w.output[1] * w.stride[1] - w.before[1]) {}
  /// The number of the first channel of x under filter element `tap`; -1 where it is outside.
  int64_t under(const Window& w, int64_t tap) const {
    const int64_t i = row + tap / w.filter[1] * w.dilation[0], j = column + tap % w.filter[1] * w.dilation[1];
    if (i < 0 || i >= w.size[0] || j < 0 || j >= w.size[1]) return -1;
    return ((batch * w.size[0] + i) * w.size[1] + j) * w.channels;
  }
};

/// Instead of prepare_rows(): row m of the product, m in [begin, end), is the patch of position first + m, in
/// the order [filter height, filter width, channels]. problem.x: the elements of x, from its `first` on.
void prepare_patches(const Linear& problem, const LinearPlan& plan, const Window& window, int64_t first,
                     int64_t begin, int64_t end, void* prepared);

/// Positions [begin, end) of a depthwise convolution: channel n of y is the filter w[.., .., n] over channel
/// n / multiplier of x. Sums as in dot.h, but a float sum is one chain of fma in the order of the filter's
/// elements. problem.columns: channels of y; w: [height, width, columns] from its `first` on; rows and depth
/// are not read.
void depthwise(const Linear& problem, const Window& window, int64_t multiplier, int64_t begin, int64_t end);

}  // namespace pyquant::kernels
