// SPDX-License-Identifier: Apache-2.0
// Square errors of the candidate ranges of a weight, over its values.
#include <algorithm>

#include "kernels/pointwise.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 1024;

// The sum of a block is defined as 32 float32 sums over every 32nd element, added in double one after the
// other; blocks are added in double. All versions round equally. Weight: none, or one for each element.
struct NoWeight {
  PYQUANT_INLINE float operator()(int64_t, float square) const { return square; }
};
struct Weight {
  const float* importance;
  PYQUANT_INLINE float operator()(int64_t i, float square) const { return importance[i] * square; }
};

template <class T, class W>
struct BlockError {
  static double scalar(const T* x, W weight, int64_t n, ScaleZeroPoint q, Grid grid) {
    double all = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      float sum[kLanes] = {};
      for (int64_t i = begin; i < std::min(n, begin + kBlock); ++i) {
        const float v = load(x[i]);
        const float error = v - dequantize_value(quantize_value(v, q, grid), q);
        sum[i % kLanes] += weight(i, error * error);
      }
      all += total(sum);
    }
    return all;
  }

  PYQUANT_INLINE static double vector(const T* x, W weight, int64_t n, ScaleZeroPoint q, Grid grid) {
    const RoundParams p = RoundParams::make(q, grid);
    double all = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = std::min(n, begin + kBlock);
      float sum[kLanes] = {};
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) {
        for (int l = 0; l < kLanes; ++l) sum[l] += weight(i + l, square_error(load(x[i + l]), p));
      }
      for (int l = 0; i + l < end; ++l) sum[l] += weight(i + l, square_error(load(x[i + l]), p));
      all += total(sum);
    }
    return all;
  }

 private:
  PYQUANT_INLINE static float square_error(float v, const RoundParams& p) {
    const int32_t steps = round_small(clamp_number(v / p.q.scale, p.lo, p.hi));
    const float error = v - static_cast<float>(steps) * p.q.scale;
    return error * error;
  }

  PYQUANT_INLINE static double total(const float* sum) {
    double all = 0;
    for (int l = 0; l < kLanes; ++l) all += static_cast<double>(sum[l]);
    return all;
  }
};

template <class T, class W>
void all_errors(const T* x, W weight, int64_t n, float lo, float hi, Grid grid, bool symmetric,
                double* errors) {
  for (int c = 0; c < kCandidates; ++c) {
    const Range r = candidate_range(lo, hi, c);
    errors[c] = dispatch<BlockError<T, W>>(x, weight, n, choose_qparams(r.lo, r.hi, grid, symmetric), grid);
  }
}

}  // namespace

Range candidate_range(float lo, float hi, int candidate) {
  const float part = static_cast<float>(100 - candidate) / 100.0f;
  return {lo * part, hi * part};
}

template <class T>
void candidate_errors(const T* x, int64_t n, float lo, float hi, Grid grid, bool symmetric, double* errors) {
  all_errors(x, NoWeight{}, n, lo, hi, grid, symmetric, errors);
}

template <class T>
void candidate_errors(const T* x, const float* importance, int64_t n, float lo, float hi, Grid grid,
                      bool symmetric, double* errors) {
  all_errors(x, Weight{importance}, n, lo, hi, grid, symmetric, errors);
}

#define PYQUANT_INSTANTIATE(T)                                                             \
  template void candidate_errors<T>(const T*, int64_t, float, float, Grid, bool, double*); \
  template void candidate_errors<T>(const T*, const float*, int64_t, float, float, Grid, bool, double*);
PYQUANT_INSTANTIATE(float)
PYQUANT_INSTANTIATE(BFloat16)
PYQUANT_INSTANTIATE(Float16)
#undef PYQUANT_INSTANTIATE

}  // namespace pyquant::kernels
