// SPDX-License-Identifier: Apache-2.0
// The range of a histogram: percentiles, and the search for the least square error.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/pointwise.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr Range kNone{std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::quiet_NaN()};
constexpr int kLanes = 8;
constexpr int kSteps = 1000;
constexpr int kStride = 10;

// The sum is defined as eight sums over every eighth bin, then one after the other, so that all versions
// round equally.
struct SquareError {
  static double scalar(const int64_t* counts, const Bins* where, int64_t bins, ScaleZeroPoint q, Grid grid) {
    double sum[kLanes] = {};
    for (int64_t b = 0; b < bins; ++b) {
      const float middle = std::ldexp(static_cast<float>(where->first + b) + 0.5f, where->exponent);
      const double error = static_cast<double>(middle) - dequantize_value(quantize_value(middle, q, grid), q);
      sum[b % kLanes] += static_cast<double>(counts[b]) * (error * error);
    }
    return total(sum);
  }

  PYQUANT_INLINE static double vector(const int64_t* counts, const Bins* where, int64_t bins,
                                      ScaleZeroPoint q, Grid grid) {
    const RoundParams p = RoundParams::make(q, grid);
    const float width = std::ldexp(1.0f, where->exponent);
    double sum[kLanes] = {};
    int64_t b = 0;
    for (; b + kLanes <= bins; b += kLanes) {
      for (int l = 0; l < kLanes; ++l) sum[l] += term(counts[b + l], where->first + b + l, width, p);
    }
    for (; b < bins; ++b) sum[b % kLanes] += term(counts[b], where->first + b, width, p);
    return total(sum);
  }

 private:
  PYQUANT_INLINE static double term(int64_t count, int64_t index, float width, const RoundParams& p) {
    const float middle = (static_cast<float>(static_cast<int32_t>(index)) + 0.5f) * width;
    const int32_t steps = round_small(clamp_number(middle / p.q.scale, p.lo, p.hi));
    const double error = static_cast<double>(middle) - static_cast<float>(steps) * p.q.scale;
    return static_cast<double>(count) * (error * error);
  }

  PYQUANT_INLINE static double total(const double* sum) {
    double all = 0;
    for (int l = 0; l < kLanes; ++l) all += sum[l];
    return all;
  }
};

float fraction(float end, int step) { return end * (static_cast<float>(step) / kSteps); }

}  // namespace

Range percentile_range(const int64_t* counts, const Bins& where, int64_t bins, double lower, double upper) {
  int64_t all = 0;
  for (int64_t b = 0; b < bins; ++b) all += counts[b];
  if (all == 0) return kNone;
  const auto value_at = [&](double percent) {
    const double rank = percent / 100.0 * static_cast<double>(all);
    int64_t below = 0, b = 0;
    while (b + 1 < bins && (below + counts[b] == 0 || static_cast<double>(below + counts[b]) < rank))
      below += counts[b++];
    const double part = (rank - static_cast<double>(below)) / static_cast<double>(counts[b]);
    return static_cast<float>(std::ldexp(static_cast<double>(where.first + b) + part, where.exponent));
  };
  return {value_at(lower), value_at(upper)};
}

Range least_error_range(const int64_t* counts, const Bins& where, int64_t bins, Grid grid, bool symmetric) {
  int64_t begin = 0, end = bins;
  while (begin < end && counts[begin] == 0) ++begin;
  while (end > begin && counts[end - 1] == 0) --end;
  if (begin == end) return kNone;
  const float full_lo = std::fmin(where.edge(begin), 0.0f), full_hi = std::fmax(where.edge(end), 0.0f);
  Range best{full_lo, full_hi};
  double least = std::numeric_limits<double>::infinity();
  const auto error_of = [&](Range r) {
    const double error =
        dispatch<SquareError>(counts, &where, bins, choose_qparams(r.lo, r.hi, grid, symmetric), grid);
    if (error < least) {
      least = error;
      best = r;
    }
    return error;
  };
  // range_at(step) for hundredths of the full range, then for thousandths around the best of them.
  const auto search = [&](const auto& range_at) {
    double least_here = std::numeric_limits<double>::infinity();
    int center = kSteps;
    for (int step = kSteps; step > 0; step -= kStride) {
      const double error = error_of(range_at(step));
      if (error < least_here) {
        least_here = error;
        center = step;
      }
    }
    for (int step = std::min(center + kStride, kSteps + 1) - 1; step > center - kStride; --step)
      error_of(range_at(step));
  };
  search([&](int step) { return Range{fraction(full_lo, step), fraction(full_hi, step)}; });
  if (symmetric) return best;
  search([&, lo = best.lo](int step) { return Range{lo, fraction(full_hi, step)}; });
  search([&, hi = best.hi](int step) { return Range{fraction(full_lo, step), hi}; });
  return best;
}

}  // namespace pyquant::kernels
