// SPDX-License-Identifier: Apache-2.0
// A quantized result whose integers have a grid for each channel: real numbers go in, each is rounded to its
// own grid, one by one. Loops for one grid are elsewhere, and quicker. Private to csrc.
#pragma once

#include <cstdint>

#include "kernels/exact.h"
#include "kernels/reals.h"

namespace pyquant::kernels {

struct ChannelOutput {
  const Rounder* rounders;  // by channel; the ends are closer where an activation clamps
  int64_t channels;
  int64_t inner;  // element i is of channel i / inner % channels
  bool wide;      // int16_t, else 8 bits
  void* data;

  const Rounder& rounder(int64_t i) const { return rounders[i / inner % channels]; }
  /// An integer that is counted from the zero point.
  void put(int64_t i, int64_t steps) const {
    const int64_t q = steps + rounder(i).zero_point;
    if (wide) {
      static_cast<int16_t*>(data)[i] = static_cast<int16_t>(q);
    } else {
      static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(q);
    }
  }
  /// A real number as good as double has it; NaN gives the lower end.
  void round(int64_t i, double v) const {
    const Rounder& to = rounder(i);
    put(i, static_cast<int64_t>(nearest(v / to.scale, to.lo, to.hi)));
  }
  /// The sum of the products over `divisor`, correctly rounded.
  void round_sum(int64_t i, const Product* products, int64_t n, double divisor = 1.0) const {
    const Rounder& to = rounder(i);
    put(i, round_exact(products, n, to.scale, divisor, to.lo, to.hi));
  }
};

}  // namespace pyquant::kernels
