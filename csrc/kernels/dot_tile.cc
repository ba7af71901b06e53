// SPDX-License-Identifier: Apache-2.0
// A tile of a matrix product: 3 rows of x times 4 rows of w, twelve sums in registers. AVX-512 runs what AVX2
// does.
#include <cmath>

#include "kernels/dot_parts.h"
#include "kernels/fma_tile.h"

namespace pyquant::kernels {
namespace {

constexpr int kColumns = kTileColumns;

template <int kRows>
void plain_integers(const int16_t* x, int64_t x_step, const int16_t* w, int64_t w_step, int64_t count,
                    double factor, double* sums) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      int32_t sum = 0;
      for (int64_t k = 0; k < count; ++k) sum += int32_t{x[i * x_step + k]} * w[j * w_step + k];
      sums[i * kUnitColumns + j] += factor * sum;
    }
  }
}

template <int kRows>
void plain_floats(const float* x, int64_t x_step, const float* w, int64_t w_step, int64_t count,
                  double factor, double* sums) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float chain[8] = {};
      for (int64_t k = 0; k < count; ++k) {
        chain[k % 8] = std::fma(x[i * x_step + k], w[j * w_step + k], chain[k % 8]);
      }
      for (int width = 8; width > 1; width /= 2) {
        for (int l = 0; l < width / 2; ++l) chain[l] = chain[2 * l] + chain[2 * l + 1];
      }
      sums[i * kUnitColumns + j] += factor * static_cast<double>(chain[0]);
    }
  }
}

#ifdef PYQUANT_X86
struct Unaligned {
  int16_t words[16];
};

PYQUANT_AVX2_INLINE void add_to(double* sums, __m256d factor, __m256d sum) {
  _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), _mm256_mul_pd(factor, sum)));
}

/// In a register: left alone, the compiler loads it again for each use.
PYQUANT_AVX2_INLINE __m256i load_words(const int16_t* from) {
  __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  __asm__("" : "+x"(words));
  return words;
}

PYQUANT_AVX2_INLINE __m256i multiply_words(__m256i words, const int16_t* with) {
  __m256i products;
  __asm__("vpmaddwd %2, %1, %0"
          : "=x"(products)
          : "x"(words), "m"(*reinterpret_cast<const Unaligned*>(with)));
  return products;
}

template <int kRows>
PYQUANT_TARGET_AVX2 void avx2_integers(const int16_t* x, int64_t x_step, const int16_t* w, int64_t w_step,
                                       int64_t count, double factor, double* sums) {
  __m256i sum[kRows][kColumns];
  PYQUANT_UNROLL for (int i = 0; i < kRows; ++i) {
    PYQUANT_UNROLL for (int j = 0; j < kColumns; ++j) sum[i][j] = _mm256_setzero_si256();
  }
  // Twelve sums, two rows of x, a weight and a product fill the registers: a third row of x stays in memory.
  constexpr int kKept = kRows < 3 ? kRows : 2;
  for (int64_t k = 0; k < count; k += 16) {
    __m256i value[kKept];
    PYQUANT_UNROLL for (int i = 0; i < kKept; ++i) value[i] = load_words(x + i * x_step + k);
    PYQUANT_UNROLL for (int j = 0; j < kColumns; ++j) {
      const __m256i weight = load_words(w + j * w_step + k);
      PYQUANT_UNROLL for (int i = 0; i < kKept; ++i)
          add_words(sum[i][j], _mm256_madd_epi16(weight, value[i]));
      if constexpr (kRows == 3) add_words(sum[2][j], multiply_words(weight, x + 2 * x_step + k));
    }
  }
  PYQUANT_UNROLL for (int i = 0; i < kRows; ++i) {
    const __m256i pairs =
        _mm256_hadd_epi32(_mm256_hadd_epi32(sum[i][0], sum[i][1]), _mm256_hadd_epi32(sum[i][2], sum[i][3]));
    const __m128i all = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    add_to(sums + i * kUnitColumns, _mm256_set1_pd(factor), _mm256_cvtepi32_pd(all));
  }
}

template <int kRows>
PYQUANT_TARGET_AVX2 void avx2_floats(const float* x, int64_t x_step, const float* w, int64_t w_step,
                                     int64_t count, double factor, double* sums) {
  __m256 sum[kRows][kColumns];
  PYQUANT_UNROLL for (int i = 0; i < kRows; ++i) {
    PYQUANT_UNROLL for (int j = 0; j < kColumns; ++j) sum[i][j] = _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < count; k += 8) {
    __m256 value[kRows];
    PYQUANT_UNROLL for (int i = 0; i < kRows; ++i) value[i] = _mm256_loadu_ps(x + i * x_step + k);
    PYQUANT_UNROLL for (int j = 0; j < kColumns; ++j) {
      const __m256 weight = _mm256_loadu_ps(w + j * w_step + k);
      PYQUANT_UNROLL for (int i = 0; i < kRows; ++i) sum[i][j] = _mm256_fmadd_ps(value[i], weight, sum[i][j]);
    }
  }
  PYQUANT_UNROLL for (int i = 0; i < kRows; ++i) {
    const __m256 fours =
        _mm256_hadd_ps(_mm256_hadd_ps(sum[i][0], sum[i][1]), _mm256_hadd_ps(sum[i][2], sum[i][3]));
    const __m128 all = _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1));
    add_to(sums + i * kUnitColumns, _mm256_set1_pd(factor), _mm256_cvtps_pd(all));
  }
}
#endif

bool vectors() { return active_isa() >= Isa::avx2; }

}  // namespace

IntegerTile integer_tile(int64_t rows) {
#ifdef PYQUANT_X86
  if (vectors()) return rows == 1 ? avx2_integers<1> : rows == 2 ? avx2_integers<2> : avx2_integers<3>;
#endif
  return rows == 1 ? plain_integers<1> : rows == 2 ? plain_integers<2> : plain_integers<3>;
}

FloatTile float_tile(int64_t rows) {
#ifdef PYQUANT_X86
  if (vectors()) return rows == 1 ? avx2_floats<1> : rows == 2 ? avx2_floats<2> : avx2_floats<3>;
#endif
  return rows == 1 ? plain_floats<1> : rows == 2 ? plain_floats<2> : plain_floats<3>;
}

}  // namespace pyquant::kernels
