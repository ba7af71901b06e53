// SPDX-License-Identifier: Apache-2.0
// Sums of doubles in a defined order: element i goes to lane i mod 8, and the lanes are added in pairs. The
// same for every vector width. Private to csrc.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/simd.h"

namespace pyquant::kernels {

constexpr int64_t kLanes = 8;

struct Lanes {
  double sum[kLanes] = {};

  double total() const {
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  }
};

PYQUANT_INLINE double lane_value(double x) { return x; }
PYQUANT_INLINE double lane_value(float x) { return static_cast<double>(x); }

/// lanes[i mod 8] += x[i], or its square. Blocks of one sum, except the last, have a multiple of kLanes
/// elements.
template <class T, bool kSquare>
struct AddToLanes {
  PYQUANT_INLINE static double term(T x) {
    const double value = lane_value(x);
    return kSquare ? value * value : value;
  }
  static void scalar(const T* x, int64_t n, Lanes* lanes) {
    for (int64_t i = 0; i < n; ++i) lanes->sum[i % kLanes] += term(x[i]);
  }
  PYQUANT_INLINE static void vector(const T* x, int64_t n, Lanes* lanes) {
    using Vector = double __attribute__((vector_size(kLanes * sizeof(double))));
    Vector sums;
    std::memcpy(&sums, lanes->sum, sizeof sums);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Vector values;
      for (int64_t l = 0; l < kLanes; ++l) values[l] = term(x[i + l]);
      sums += values;
    }
    std::memcpy(lanes->sum, &sums, sizeof sums);
    for (int64_t l = 0; i < n; ++i, ++l) lanes->sum[l] += term(x[i]);
  }
};

template <class T>
void add_to_lanes(const T* x, int64_t n, Lanes* lanes) {
  dispatch<AddToLanes<T, false>>(x, n, lanes);
}
template <class T>
void add_squares_to_lanes(const T* x, int64_t n, Lanes* lanes) {
  dispatch<AddToLanes<T, true>>(x, n, lanes);
}

}  // namespace pyquant::kernels
