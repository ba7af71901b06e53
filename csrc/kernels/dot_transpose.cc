// SPDX-License-Identifier: Apache-2.0
// Weights that are stored [depth, columns], as an activation on the right side of BATCH_MATMUL often is:
// blocks of 8 x 8 turned on their way into a panel.
#include <algorithm>

#include "kernels/dot_parts.h"
#include "kernels/fma_tile.h"

namespace pyquant::kernels {
namespace {

#ifdef PYQUANT_X86
PYQUANT_AVX2_INLINE __m128i load_eight(const int16_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
PYQUANT_AVX2_INLINE __m128i load_eight(const int8_t* from) {
  return _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
PYQUANT_AVX2_INLINE __m128i load_eight(const uint8_t* from) {
  return _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

/// Of eight rows: row i beside row i + 4, as far as they go.
PYQUANT_AVX2_INLINE void shuffle(const __m128i (&from)[8], __m128i (&to)[8]) {
  PYQUANT_UNROLL for (int i = 0; i < 4; ++i) {
    to[2 * i] = _mm_unpacklo_epi16(from[i], from[i + 4]);
    to[2 * i + 1] = _mm_unpackhi_epi16(from[i], from[i + 4]);
  }
}

template <class T>
PYQUANT_TARGET_AVX2 void turn_words(const T* from, int64_t from_step, int64_t rows, int64_t depth,
                                    int16_t* to, int64_t to_step) {
  for (int64_t k = 0; k < depth; k += 8) {
    for (int64_t n = 0; n < rows; n += 8) {
      __m128i a[8], b[8];
      PYQUANT_UNROLL for (int i = 0; i < 8; ++i) a[i] = load_eight(from + (k + i) * from_step + n);
      shuffle(a, b);
      shuffle(b, a);
      shuffle(a, b);
      PYQUANT_UNROLL for (int i = 0; i < 8; ++i) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (n + i) * to_step + k), b[i]);
      }
    }
  }
}

PYQUANT_TARGET_AVX2 void turn_floats(const float* from, int64_t from_step, int64_t rows, int64_t depth,
                                     float* to, int64_t to_step) {
  for (int64_t k = 0; k < depth; k += 4) {
    for (int64_t n = 0; n < rows; n += 4) {
      __m128 a[4];
      PYQUANT_UNROLL for (int i = 0; i < 4; ++i) a[i] = _mm_loadu_ps(from + (k + i) * from_step + n);
      _MM_TRANSPOSE4_PS(a[0], a[1], a[2], a[3]);
      PYQUANT_UNROLL for (int i = 0; i < 4; ++i) _mm_storeu_ps(to + (n + i) * to_step + k, a[i]);
    }
  }
}
#endif

template <class T, class Out>
void turn(const T* from, int64_t from_step, int64_t rows, int64_t depth, Out* to, int64_t to_step) {
  int64_t n = 0, k = 0;  // how far whole blocks went
#ifdef PYQUANT_X86
  if (active_isa() >= Isa::avx2) {
    n = rows / 8 * 8;
    k = depth / 8 * 8;
    if constexpr (std::is_same_v<T, float>) {
      turn_floats(from, from_step, n, k, to, to_step);
    } else {
      turn_words(from, from_step, n, k, to, to_step);
    }
  }
#endif
  for (int64_t i = 0; i < depth; ++i) {
    for (int64_t j = i < k ? n : 0; j < rows; ++j)
      to[j * to_step + i] = static_cast<Out>(from[i * from_step + j]);
  }
}

}  // namespace

void transpose_rows(const Matrix& w, int64_t first, int64_t rows, int64_t begin, int64_t count,
                    int64_t padded, int16_t* panel) {
  const int64_t at = w.first + begin * w.column_step + first;
  switch (w.type) {
    case Elements::int8:
      return turn(static_cast<const int8_t*>(w.data) + at, w.column_step, rows, count, panel, padded);
    case Elements::uint8:
      return turn(static_cast<const uint8_t*>(w.data) + at, w.column_step, rows, count, panel, padded);
    default:
      return turn(static_cast<const int16_t*>(w.data) + at, w.column_step, rows, count, panel, padded);
  }
}

void transpose_rows(const Matrix& w, int64_t first, int64_t rows, int64_t begin, int64_t count,
                    int64_t padded, float* panel) {
  const int64_t at = w.first + begin * w.column_step + first;
  turn(static_cast<const float*>(w.data) + at, w.column_step, rows, count, panel, padded);
}

}  // namespace pyquant::kernels
