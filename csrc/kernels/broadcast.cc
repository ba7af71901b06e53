// SPDX-License-Identifier: Apache-2.0
// Shapes to runs: dimensions of one element are dropped, and neighbours that both operands walk as one are
// joined.
#include "kernels/broadcast.h"

#include <algorithm>

namespace pyquant::kernels {

int64_t Broadcast::numel() const {
  int64_t n = 1;
  for (int d = 0; d < rank; ++d) n *= dims[d];
  return n;
}

bool Broadcast::make(const int32_t* a, int a_rank, const int32_t* b, int b_rank, Broadcast* out) {
  const int rank = std::max(a_rank, b_rank);
  bool empty = false;
  int64_t dims[kMostDims], a_strides[kMostDims], b_strides[kMostDims];
  int64_t a_step = 1, b_step = 1;
  int kept = kMostDims;  // filled from the end
  for (int i = 1; i <= rank; ++i) {
    const int64_t x = i <= a_rank ? a[a_rank - i] : 1;
    const int64_t y = i <= b_rank ? b[b_rank - i] : 1;
    if (x != y && x != 1 && y != 1) return false;
    const int64_t size = x == 1 ? y : x;
    empty = empty || size == 0;
    if (size != 1 && !empty) {
      const int64_t a_stride = x == 1 ? 0 : a_step, b_stride = y == 1 ? 0 : b_step;
      const bool joins = kept < kMostDims && a_stride == a_strides[kept] * dims[kept] &&
                         b_stride == b_strides[kept] * dims[kept];
      if (joins) {
        dims[kept] *= size;
      } else {
        --kept;
        dims[kept] = size;
        a_strides[kept] = a_stride;
        b_strides[kept] = b_stride;
      }
    }
    a_step *= x;
    b_step *= y;
  }
  if (empty) kept = kMostDims;
  if (kept == kMostDims) {
    --kept;
    dims[kept] = empty ? 0 : 1;
    a_strides[kept] = b_strides[kept] = 1;
  }
  *out = Broadcast();
  out->rank = kMostDims - kept;
  std::copy(dims + kept, dims + kMostDims, out->dims);
  std::copy(a_strides + kept, a_strides + kMostDims, out->a_strides);
  std::copy(b_strides + kept, b_strides + kMostDims, out->b_strides);
  return true;
}

}  // namespace pyquant::kernels
