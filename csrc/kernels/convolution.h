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
