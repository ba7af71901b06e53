// SPDX-License-Identifier: Apache-2.0
// Counting values in bins that grow with the data. Ranges of a histogram are histogram_range.cc.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/convert.h"
#include "kernels/half.h"
#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

PYQUANT_INLINE float limited(float v) {
  v = v < -kHistogramLimit ? -kHistogramLimit : v;
  return v > kHistogramLimit ? kHistogramLimit : v;
}

double floor_at(double v, int exponent) { return std::floor(std::ldexp(v, -exponent)); }

// The bin that a value falls into, counted from the first; `bins` if it is not finite. A negative value whose
// quotient underflows to zero still lies below zero. Masks, and one comparison per choice: gcc vectorizes
// neither branches nor conjunctions of float comparisons.
PYQUANT_INLINE int32_t bin_of(float x, float inverse_width, int32_t first, int32_t bins) {
  const uint32_t u = bits_of(x);
  const int32_t none = -static_cast<int32_t>((u & 0x7fffffffu) >= 0x7f800000u);
  const float v = limited(from_bits(u & ~static_cast<uint32_t>(none)));
  const float t = v * inverse_width;
  const float most = v < 0.0f ? -0x1p-126f : t;
  const float at = most < t ? most : t;
  int32_t i = static_cast<int32_t>(at);
  i -= static_cast<float>(i) > at;
  return ((i - first) & ~none) | (bins & none);
}

template <class T>
struct Count {
  static void scalar(const T* x, int64_t n, const Bins* where, int64_t bins, uint32_t* counters, int tables) {
    const float inverse = std::ldexp(1.0f, -where->exponent);
    for (int64_t i = 0; i < n; ++i) {
      const int32_t bin =
          bin_of(load(x[i]), inverse, static_cast<int32_t>(where->first), static_cast<int32_t>(bins));
      ++counters[(i % tables) * (bins + 1) + bin];
    }
  }

  // The bins of a block first, which vectorizes, then the counters: several tables, so that a run of equal
  // values does not wait for its own increments.
  PYQUANT_INLINE static void vector(const T* x, int64_t n, const Bins* where, int64_t bins,
                                    uint32_t* counters, int tables) {
    constexpr int64_t kBlock = 512;
    const float inverse = std::ldexp(1.0f, -where->exponent);
    const int32_t first = static_cast<int32_t>(where->first), last = static_cast<int32_t>(bins);
    const int64_t stride = tables == 4 ? bins + 1 : 0;
    uint32_t *t0 = counters, *t1 = t0 + stride, *t2 = t1 + stride, *t3 = t2 + stride;
    int32_t bin[kBlock];
    for (int64_t at = 0; at < n; at += kBlock) {
      const int64_t m = std::min(kBlock, n - at);
      for (int64_t i = 0; i < m; ++i) bin[i] = bin_of(load(x[at + i]), inverse, first, last);
      int64_t i = 0;
      for (; i + 4 <= m; i += 4) {
        ++t0[bin[i]];
        ++t1[bin[i + 1]];
        ++t2[bin[i + 2]];
        ++t3[bin[i + 3]];
      }
      for (; i < m; ++i) ++t0[bin[i]];
    }
  }
};

}  // namespace

bool bins_of(const float* range, int64_t bins, Bins* out) {
  if (!(range[0] <= 0.0f) || !(range[1] > range[0]) || std::isinf(range[0]) || std::isinf(range[1]))
    return false;
  const double width = (static_cast<double>(range[1]) - range[0]) / static_cast<double>(bins);
  int exponent = 0;
  if (std::frexp(width, &exponent) != 0.5) return false;
  *out = {exponent - 1, static_cast<int64_t>(floor_at(range[0], exponent - 1))};
  return out->edge(0) == range[0] && out->edge(bins) == range[1];
}

void widen_by_counts(const int64_t* counts, const Bins& where, int64_t bins, double* lo, double* hi) {
  int64_t begin = 0, end = bins;
  while (begin < end && counts[begin] == 0) ++begin;
  while (end > begin && counts[end - 1] == 0) --end;
  if (begin == end) return;
  // Any value of a bin represents all values in it: wider bins nest.
  *lo = std::min(*lo, std::ldexp(static_cast<double>(where.first + begin), where.exponent));
  *hi = std::max(*hi, std::ldexp(static_cast<double>(where.first + end) - 0.5, where.exponent));
}

Bins bins_for(double lo, double hi, int least, int64_t bins) {
  constexpr double limit = kHistogramLimit;
  lo = std::max(std::min(lo, 0.0), -limit);
  hi = std::min(std::max(hi, 0.0), limit);
  int exponent = std::max(least, kHistogramExponent);
  const double width = (hi - lo) / static_cast<double>(bins);
  if (width > 0) exponent = std::max(exponent, std::ilogb(width) - 1);  // narrower ones cannot fit
  while (floor_at(hi, exponent) - floor_at(lo, exponent) >= static_cast<double>(bins)) ++exponent;
  return {exponent, static_cast<int64_t>(floor_at(lo, exponent))};
}

void add_counts(const int64_t* from, const Bins& from_bins, int64_t bins, int64_t* to, const Bins& to_bins) {
  const int shift = std::min(to_bins.exponent - from_bins.exponent, 62);
  for (int64_t b = 0; b < bins; ++b) {
    if (from[b] != 0) to[((from_bins.first + b) >> shift) - to_bins.first] += from[b];
  }
}

template <class T>
void count_values(const T* x, int64_t n, const Bins& where, int64_t bins, uint32_t* counters, int tables) {
  if constexpr (std::is_same_v<T, Float16>) {
    if (has_fast_halves()) {
      static_assert(kHalves % 4 == 0, "a block begins at the first table");
      return for_blocks(x, 0, n, [&](const float* values, int64_t, int64_t length) {
        dispatch<Count<float>>(values, length, &where, bins, counters, tables);
      });
    }
  }
  dispatch<Count<T>>(x, n, &where, bins, counters, tables);
}

template void count_values<float>(const float*, int64_t, const Bins&, int64_t, uint32_t*, int);
template void count_values<BFloat16>(const BFloat16*, int64_t, const Bins&, int64_t, uint32_t*, int);
template void count_values<Float16>(const Float16*, int64_t, const Bins&, int64_t, uint32_t*, int);

}  // namespace pyquant::kernels
