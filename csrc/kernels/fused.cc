// SPDX-License-Identifier: Apache-2.0
// Fused activations: limits of integers, loops over plain values.
#include "kernels/fused.h"

#include <algorithm>
#include <type_traits>

#include "kernels/exact.h"
#include "kernels/real.h"

namespace pyquant::kernels {

void limit(Fused fused, Rounder* out) {
  const auto steps = [&](double x) {
    return static_cast<int32_t>(round_exact({{x, 1.0}}, out->scale, 1.0, out->lo, out->hi));
  };
  const int32_t minus_one = steps(-1.0), one = steps(1.0), six = steps(6.0);
  if (fused == Fused::relu || fused == Fused::relu6) out->lo = std::max(out->lo, 0);
  if (fused == Fused::relu_n1_to_1) out->lo = minus_one;
  if (fused == Fused::relu_n1_to_1) out->hi = one;
  if (fused == Fused::relu6) out->hi = six;
}

template <class T>
void activate(Fused fused, T* y, int64_t n) {
  if (fused == Fused::none) return;
  if (fused == Fused::tanh) {
    if constexpr (std::is_floating_point_v<T>) {
      for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(real_tanh(static_cast<double>(y[i])));
    }
    return;
  }
  const T lo = fused == Fused::relu_n1_to_1 ? static_cast<T>(-1) : T{0};
  const T hi = fused == Fused::relu_n1_to_1 ? T{1} : T{6};
  for (int64_t i = 0; i < n; ++i) {
    y[i] = y[i] < lo ? lo : y[i];
    if (fused != Fused::relu) y[i] = y[i] > hi ? hi : y[i];
  }
}

template void activate(Fused, float*, int64_t);
template void activate(Fused, double*, int64_t);
template void activate(Fused, int32_t*, int64_t);
template void activate(Fused, int64_t*, int64_t);

}  // namespace pyquant::kernels
