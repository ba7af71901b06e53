// SPDX-License-Identifier: Apache-2.0
// Sums of doubles in a defined order: element i goes to lane i mod 8; lanes l and l + 4 are added, then l and
// l + 2, then the last two. The same for every vector width. Private to csrc.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/simd.h"

namespace pyquant::kernels {

constexpr int64_t kLanes = 8;

struct Lanes {
  double sum[kLanes] = {};

  double total() const {
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  }
};

/// lanes[i mod 8] += x[i], or its square. Blocks of one sum, except the last, have a multiple of kLanes
/// elements.
template <class T, bool kSquare>
struct AddToLanes {
  using Vector = double __attribute__((vector_size(kLanes * sizeof(double))));
  using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));

  PYQUANT_INLINE static double term(T x) {
    const auto value = static_cast<double>(x);
    return kSquare ? value * value : value;
  }
  static void scalar(const T* x, int64_t n, Lanes* lanes) {
    for (int64_t i = 0; i < n; ++i) lanes->sum[i % kLanes] += term(x[i]);
  }
  PYQUANT_INLINE static void vector(const T* x, int64_t n, Lanes* lanes) {
    using Narrow = std::conditional_t<std::is_same_v<T, float>, Floats, Vector>;
    Vector sums;
    std::memcpy(&sums, lanes->sum, sizeof sums);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Narrow narrow;
      std::memcpy(&narrow, x + i, sizeof narrow);
      const Vector values = __builtin_convertvector(narrow, Vector);
      sums += kSquare ? values * values : values;
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
