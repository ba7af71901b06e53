// SPDX-License-Identifier: Apache-2.0
// Products with Hadamard matrices in n log n operations.
#include <cstring>

#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

struct Line {
  static void scalar(double* x, int64_t n, const double* core, int64_t order, double* scratch) {
    vector(x, n, core, order, scratch);
  }

  PYQUANT_INLINE static void vector(double* x, int64_t n, const double* core, int64_t order,
                                    double* scratch) {
    for (int64_t at = 0; order > 1 && at < n; at += order) {
      double* part = x + at;
      for (int64_t k = 0; k < order; ++k) scratch[k] = part[0] * core[k];
      for (int64_t i = 1; i < order; ++i) {
        const double value = part[i];
        const double* row = core + i * order;
        for (int64_t k = 0; k < order; ++k) scratch[k] += value * row[k];
      }
      std::memcpy(part, scratch, static_cast<size_t>(order) * sizeof(double));
    }
    for (int64_t half = order; half < n; half *= 2) {
      for (int64_t at = 0; at < n; at += 2 * half) {
        double* __restrict__ low = x + at, * __restrict__ high = low + half;
        for (int64_t k = 0; k < half; ++k) {
          const double a = low[k], b = high[k];
          low[k] = a + b;
          high[k] = a - b;
        }
      }
    }
  }
};

}  // namespace

void hadamard(double* x, int64_t lines, int64_t n, const double* core, int64_t order, double* scratch) {
  for (int64_t line = 0; line < lines; ++line) dispatch<Line>(x + line * n, n, core, order, scratch);
}

}  // namespace pyquant::kernels
