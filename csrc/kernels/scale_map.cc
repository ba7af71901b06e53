// SPDX-License-Identifier: Apache-2.0
// The three granularities as a ScaleMap. Groups of the last dimension are channels of a flat view, so that
// their inner loop is a run.
#include "pyquant/kernels.h"

namespace pyquant::kernels {

ScaleMap ScaleMap::per_tensor(int64_t numel) { return {{1, 1, numel}, {0, 0, 0}}; }

ScaleMap ScaleMap::per_channel(int64_t outer, int64_t channels, int64_t inner) {
  if (inner == 1) return {{1, outer, channels}, {0, 0, 1}};
  return {{outer, channels, inner}, {0, 1, 0}};
}

ScaleMap ScaleMap::per_group(int64_t outer, int64_t groups, int64_t group, int64_t inner) {
  if (inner == 1) return {{1, outer * groups, group}, {0, 1, 0}};
  return {{outer * groups, group, inner}, {inner, 0, 1}};
}

int independent_dim(const ScaleMap& map) {
  if (map.strides[1] != 0) return 1;
  if (map.strides[0] != 0) return 0;
  return map.strides[2] != 0 ? 2 : -1;
}

}  // namespace pyquant::kernels
