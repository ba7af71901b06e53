// SPDX-License-Identifier: Apache-2.0
// The inner loop of the matrix products: a tile of 4 x 24 sums, all in registers; private to csrc/kernels.
//
// 24 lanes are three AVX registers: twelve sums, three values and one factor fill the sixteen that there are.
// AVX-512 runs the same.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/simd.h"
#include "pyquant/kernels.h"

#if defined(__clang__)
#define PYQUANT_UNROLL _Pragma("unroll")
#else
#define PYQUANT_UNROLL _Pragma("GCC unroll 16")
#endif

namespace pyquant::kernels {

/// sums[i * kPanel + l] = fma(a[n * a_step + i], b[n * kPanel + l], itself), n = 0 .. count - 1 one after the
/// other, for i < kStrip and l < kPanel.
struct FmaTile {
  static void scalar(const float* a, int64_t a_step, const float* b, int64_t count, float* sums) {
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t i = 0; i < kStrip; ++i) {
        for (int64_t l = 0; l < kPanel; ++l) {
          float& sum = sums[i * kPanel + l];
          sum = std::fma(a[n * a_step + i], b[n * kPanel + l], sum);
        }
      }
    }
  }

  PYQUANT_INLINE static void vector(const float* a, int64_t a_step, const float* b, int64_t count,
                                    float* sums) {
    constexpr int kVectors = kPanel / kWidth;
    Vector sum[kStrip][kVectors];
    PYQUANT_UNROLL for (int i = 0; i < kStrip; ++i) {
      PYQUANT_UNROLL for (int v = 0; v < kVectors; ++v) load(sums + i * kPanel + v * kWidth, sum[i][v]);
    }
    for (int64_t n = 0; n < count; ++n) {
      Vector values[kVectors];
      PYQUANT_UNROLL for (int v = 0; v < kVectors; ++v) load(b + n * kPanel + v * kWidth, values[v]);
      PYQUANT_UNROLL for (int i = 0; i < kStrip; ++i) {
        const float factor = a[n * a_step + i];
        PYQUANT_UNROLL for (int v = 0; v < kVectors; ++v) add(factor, values[v], sum[i][v]);
      }
    }
    PYQUANT_UNROLL for (int i = 0; i < kStrip; ++i) {
      PYQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
        std::memcpy(sums + i * kPanel + v * kWidth, &sum[i][v], sizeof(Vector));
      }
    }
  }

 private:
  static constexpr int kWidth = 8;
  using Vector = float __attribute__((vector_size(kWidth * sizeof(float))));

  PYQUANT_INLINE static void load(const float* from, Vector& to) { std::memcpy(&to, from, sizeof(Vector)); }

  PYQUANT_INLINE static void add(float factor, const Vector& values, Vector& sum) {
    Vector next;
    for (int l = 0; l < kWidth; ++l) next[l] = __builtin_fmaf(factor, values[l], sum[l]);
    sum = next;
  }
};

}  // namespace pyquant::kernels
