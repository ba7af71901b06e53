// SPDX-License-Identifier: Apache-2.0
// Float16 to float32 and back: F16C, or the loop over the definition.
#include "kernels/half.h"

#include "kernels/convert.h"
#include "kernels/simd.h"

#ifdef PYQUANT_X86
#include <immintrin.h>
#endif

namespace pyquant::kernels {
namespace {

template <class T>
struct Widen {
  static void scalar(const T* x, int64_t n, float* y) { vector(x, n, y); }
  PYQUANT_INLINE static void vector(const T* __restrict x, int64_t n, float* __restrict y) {
    for (int64_t i = 0; i < n; ++i) y[i] = load(x[i]);
  }
};

struct Narrow {
  static void scalar(const float* x, int64_t n, Float16* y) { vector(x, n, y); }
  PYQUANT_INLINE static void vector(const float* __restrict x, int64_t n, Float16* __restrict y) {
    for (int64_t i = 0; i < n; ++i) store(x[i], y[i]);
  }
};

#ifdef PYQUANT_X86
constexpr int64_t kEight = 8;

PYQUANT_TARGET_AVX2 void widen_f16c(const Float16* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kEight <= n; i += kEight) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) y[i] = load(x[i]);
}

PYQUANT_TARGET_AVX2 void narrow_f16c(const float* x, int64_t n, Float16* y) {
  int64_t i = 0;
  for (; i + kEight <= n; i += kEight) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), halves);
  }
  for (; i < n; ++i) store(x[i], y[i]);
}
#endif

}  // namespace

bool has_fast_halves() {
#ifdef PYQUANT_X86
  const Isa isa = active_isa();
  return isa == Isa::avx2 || isa == Isa::avx512;
#else
  return false;
#endif
}

void widen(const BFloat16* x, int64_t n, float* y) { dispatch<Widen<BFloat16>>(x, n, y); }

void widen(const Float16* x, int64_t n, float* y) {
#ifdef PYQUANT_X86
  if (has_fast_halves()) return widen_f16c(x, n, y);
#endif
  dispatch<Widen<Float16>>(x, n, y);
}

void narrow(const float* x, int64_t n, Float16* y) {
#ifdef PYQUANT_X86
  if (has_fast_halves()) return narrow_f16c(x, n, y);
#endif
  dispatch<Narrow>(x, n, y);
}

}  // namespace pyquant::kernels
