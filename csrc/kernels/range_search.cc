// SPDX-License-Identifier: Apache-2.0
// Square errors of the candidate ranges of a weight, over its values.
#include <algorithm>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/pointwise.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 1024;

// The sum of a block is defined as 32 float32 sums over every 32nd element, added in double one after the
// other; blocks are added in double. All versions round equally. Weight: none, or one for each element.
struct NoWeight {
  NoWeight from(int64_t) const { return {}; }
  PYQUANT_INLINE float operator()(int64_t, float square) const { return square; }
};
struct Weight {
  const float* importance;
  Weight from(int64_t at) const { return {importance + at}; }
  PYQUANT_INLINE float operator()(int64_t i, float square) const { return importance[i] * square; }
};

/// errors[c] += the error of candidate c over one block.
template <class W>
struct AddErrors {
  static void scalar(const float* x, W weight, int64_t n, const ScaleZeroPoint* candidates, Grid grid,
                     double* errors) {
    for (int c = 0; c < kCandidates; ++c) {
      float sum[kLanes] = {};
      for (int64_t i = 0; i < n; ++i) {
        const float error = x[i] - dequantize_value(quantize_value(x[i], candidates[c], grid), candidates[c]);
        sum[i % kLanes] += weight(i, error * error);
      }
      double all = 0;
      for (int l = 0; l < kLanes; ++l) all += static_cast<double>(sum[l]);
      errors[c] += all;
    }
  }

  // The lanes of several candidates are added side by side: one chain of additions would be waited for.
  PYQUANT_INLINE static void vector(const float* x, W weight, int64_t n, const ScaleZeroPoint* candidates,
                                    Grid grid, double* errors) {
    constexpr int kTogether = 8;
    static_assert(kCandidates % kTogether == 0);
    for (int c = 0; c < kCandidates; c += kTogether) {
      float sum[kTogether][kLanes];
      for (int t = 0; t < kTogether; ++t)
        lanes(x, weight, n, RoundParams::make(candidates[c + t], grid), sum[t]);
      double all[kTogether] = {};
      for (int l = 0; l < kLanes; ++l) {
        for (int t = 0; t < kTogether; ++t) all[t] += static_cast<double>(sum[t][l]);
      }
      for (int t = 0; t < kTogether; ++t) errors[c + t] += all[t];
    }
  }

 private:
  PYQUANT_INLINE static void lanes(const float* x, W weight, int64_t n, const RoundParams& p, float* to) {
    float sum[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) sum[l] += weight(i + l, square_error(x[i + l], p));
    }
    for (int l = 0; i + l < n; ++l) sum[l] += weight(i + l, square_error(x[i + l], p));
    std::copy_n(sum, kLanes, to);
  }

  PYQUANT_INLINE static float square_error(float v, const RoundParams& p) {
    const int32_t steps = round_small(clamp_number(v / p.q.scale, p.lo, p.hi));
    const float error = v - static_cast<float>(steps) * p.q.scale;
    return error * error;
  }
};

// A block at a time for all candidates, while it lies in the first cache.
template <class T, class W>
void all_errors(const T* x, W weight, int64_t n, float lo, float hi, Grid grid, bool symmetric,
                double* errors) {
  ScaleZeroPoint candidates[kCandidates];
  for (int c = 0; c < kCandidates; ++c) {
    const Range r = candidate_range(lo, hi, c);
    candidates[c] = choose_qparams(r.lo, r.hi, grid, symmetric);
    errors[c] = 0;
  }
  const ScaleZeroPoint* list = candidates;
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t length = std::min(kBlock, n - at);
    if constexpr (std::is_same_v<T, float>) {
      dispatch<AddErrors<W>>(x + at, weight.from(at), length, list, grid, errors);
    } else {
      float values[kBlock];  // converted once for all candidates
      widen(x + at, length, values);
      dispatch<AddErrors<W>>(static_cast<const float*>(values), weight.from(at), length, list, grid, errors);
    }
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
