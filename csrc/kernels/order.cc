// SPDX-License-Identifier: Apache-2.0
// Search for extremes, and a partial sort of places.
#include "kernels/order.h"

#include <algorithm>
#include <numeric>

namespace pyquant::kernels {
namespace {

/// Whether a comes before b: NaN first, then as `largest` says.
template <class T>
bool before(bool largest, T a, T b) {
  if (a != a) return b == b;
  return largest ? a > b : a < b;
}

}  // namespace

template <class T, class I>
void arg_extreme(bool largest, const T* x, int64_t size, int64_t inner, I* y, int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const T* const values = x + line / inner * size * inner + line % inner;
    int64_t best = 0;
    T value = values[0];
    for (int64_t i = 1; i < size; ++i) {
      if (!before(largest, values[i * inner], value)) continue;
      value = values[i * inner];
      best = i;
    }
    y[line] = static_cast<I>(best);
  }
}

template <class T>
void top_places(const T* x, int64_t n, int64_t k, int32_t* places) {
  std::iota(places, places + n, 0);
  std::partial_sort(places, places + k, places + n, [x](int32_t a, int32_t b) {
    return before(true, x[a], x[b]) || (!before(true, x[b], x[a]) && a < b);
  });
}

#define PYQUANT_ORDER(T)                                                                   \
  template void arg_extreme(bool, const T*, int64_t, int64_t, int32_t*, int64_t, int64_t); \
  template void arg_extreme(bool, const T*, int64_t, int64_t, int64_t*, int64_t, int64_t); \
  template void top_places(const T*, int64_t, int64_t, int32_t*);
PYQUANT_ORDER(float)
PYQUANT_ORDER(double)
PYQUANT_ORDER(int8_t)
PYQUANT_ORDER(uint8_t)
PYQUANT_ORDER(int16_t)
PYQUANT_ORDER(int32_t)
PYQUANT_ORDER(int64_t)
#undef PYQUANT_ORDER

}  // namespace pyquant::kernels
