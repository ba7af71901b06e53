// SPDX-License-Identifier: Apache-2.0
// Arithmetic of real numbers whose results have a grid for each channel, one by one.
#include <cmath>

#include "kernels/binary.h"
#include "kernels/binary_real.h"

namespace pyquant::kernels {

void binary_channels(Binary op, bool tanh, const Broadcast& map, const double* a, const double* b,
                     const ChannelOutput& y, int64_t begin, int64_t end) {
  for_each_run(map, begin, end, [&](const Run& run) {
    for (int64_t i = 0; i < run.n; ++i) {
      const double x = a[run.a + i * run.a_stride], z = b[run.b + i * run.b_stride];
      const double v = binary_real(op, x, z);
      if (tanh) {
        y.round(run.out + i, real_tanh(v));
      } else if (!std::isfinite(v)) {
        y.round(run.out + i, v);
      } else {
        y.put(run.out + i, binary_exact(op, x, z, y.rounder(run.out + i)));
      }
    }
  });
}

}  // namespace pyquant::kernels
