// SPDX-License-Identifier: Apache-2.0
// CUMSUM: one line after the other.
#include "kernels/accumulate.h"
#include "kernels/reduce.h"

namespace pyquant::kernels {

template <class T>
void cumsum(const Cumsum& plan, const T* x, T* y, int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const int64_t first = line / plan.inner * plan.size * plan.inner + line % plan.inner;
    Sum<T> sum{0};
    for (int64_t i = 0; i < plan.size; ++i) {
      const int64_t at = first + (plan.reverse ? plan.size - 1 - i : i) * plan.inner;
      const Sum<T> value = static_cast<Sum<T>>(x[at]);
      if (!plan.exclusive) sum += value;
      y[at] = finish_sum<T>(sum, plan.exclusive ? i : i + 1, false, plan.in, plan.out);
      if (plan.exclusive) sum += value;
    }
  }
}

template void cumsum(const Cumsum&, const float*, float*, int64_t, int64_t);
template void cumsum(const Cumsum&, const int8_t*, int8_t*, int64_t, int64_t);
template void cumsum(const Cumsum&, const uint8_t*, uint8_t*, int64_t, int64_t);
template void cumsum(const Cumsum&, const int16_t*, int16_t*, int64_t, int64_t);
template void cumsum(const Cumsum&, const int32_t*, int32_t*, int64_t, int64_t);
template void cumsum(const Cumsum&, const int64_t*, int64_t*, int64_t, int64_t);

}  // namespace pyquant::kernels
