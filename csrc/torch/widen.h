// SPDX-License-Identifier: Apache-2.0
// kernels::minmax on torch's threads.
#pragma once

#include <algorithm>
#include <limits>
#include <mutex>

#include "torch/common.h"

namespace pyquant::torch_ops {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// Widens lo, hi (one per scale) to x; returns how many values are not finite. Threads own the scales that
/// they update, except when there is one for all.
template <class T>
int64_t widen_range(const T* x, const kernels::ScaleMap& map, float* lo, float* hi) {
  if (map.numel() == 0) return 0;
  const int own = kernels::independent_dim(map), dim = own < 0 ? 2 : own;
  const int64_t per_index = map.numel() / map.dims[dim];
  const int64_t grain = std::max<int64_t>(kGrain / per_index, dim == 2 ? 64 : 1);
  std::mutex mutex;
  int64_t nonfinite = 0;
  parallel(map.dims[dim], grain, [&](int64_t begin, int64_t end) {
    kernels::Box box{{0, 0, 0}, {map.dims[0], map.dims[1], map.dims[2]}};
    box.begin[dim] = begin;
    box.end[dim] = end;
    float part_lo = kInf, part_hi = -kInf;
    const int64_t bad = kernels::minmax(x, map, box, own < 0 ? &part_lo : lo, own < 0 ? &part_hi : hi);
    const std::lock_guard<std::mutex> lock(mutex);
    nonfinite += bad;
    if (own < 0) {
      *lo = std::min(*lo, part_lo);
      *hi = std::max(*hi, part_hi);
    }
  });
  return nonfinite;
}

}  // namespace pyquant::torch_ops
