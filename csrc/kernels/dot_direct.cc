// SPDX-License-Identifier: Apache-2.0
// Products of few rows of x, straight from packed weights: decoding one token reads every weight once, so the
// loop must keep up with memory. Four rows of w go along one pass over x.
#include <cstring>

#include "kernels/dot_parts.h"
#include "kernels/fma_tile.h"

#ifdef PYQUANT_X86
#include <immintrin.h>
#endif

namespace pyquant::kernels {

#ifdef PYQUANT_X86
namespace {

#define PYQUANT_AVX2_INLINE __attribute__((always_inline, target(PYQUANT_AVX2_FEATURES))) inline

/// How 32 packed bytes become vectors of 16 words, number j of them in the order of place_of().
template <bool kSigned>
struct Nibbles {
  static constexpr int kVectors = 4;
  __m256i words;
  PYQUANT_AVX2_INLINE void load(const uint8_t* from) {
    words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  template <int j>
  PYQUANT_AVX2_INLINE __m256i get() const {
    const __m256i up = j == 3 ? words : _mm256_slli_epi16(words, 12 - 4 * j);
    return kSigned ? _mm256_srai_epi16(up, 12) : _mm256_srli_epi16(up, 12);
  }
};

template <bool kSigned>
struct Octets {
  static constexpr int kVectors = 2;
  const uint8_t* bytes;
  PYQUANT_AVX2_INLINE void load(const uint8_t* from) { bytes = from; }
  template <int j>
  PYQUANT_AVX2_INLINE __m256i get() const {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * j));
    return kSigned ? _mm256_cvtepi8_epi16(half) : _mm256_cvtepu8_epi16(half);
  }
};

template <class Code, int j, int kRows, int kX>
PYQUANT_AVX2_INLINE void add_vector(const Code* code, const int16_t* x, int64_t x_step,
                                    __m256i (&sum)[kRows][kX]) {
  PYQUANT_UNROLL for (int r = 0; r < kRows; ++r) {
    const __m256i weight = code[r].template get<j>();
    PYQUANT_UNROLL for (int m = 0; m < kX; ++m) {
      const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + m * x_step + 16 * j));
      sum[r][m] = _mm256_add_epi32(sum[r][m], _mm256_madd_epi16(weight, value));
    }
  }
}

/// One group: 32 packed bytes of each of kRows rows of w, with kX rows of x.
template <class Code, int kRows, int kX>
PYQUANT_AVX2_INLINE void add_group(const uint8_t* const* w, int64_t byte, const int16_t* x, int64_t x_step,
                                   __m256i (&sum)[kRows][kX]) {
  Code code[kRows];
  PYQUANT_UNROLL for (int r = 0; r < kRows; ++r) code[r].load(w[r] + byte);
  add_vector<Code, 0>(code, x, x_step, sum);
  add_vector<Code, 1>(code, x, x_step, sum);
  if constexpr (Code::kVectors == 4) {
    add_vector<Code, 2>(code, x, x_step, sum);
    add_vector<Code, 3>(code, x, x_step, sum);
  }
}

PYQUANT_AVX2_INLINE __m256i widened(__m256i sum) {
  return _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(sum)),
                          _mm256_cvtepi32_epi64(_mm256_extracti128_si256(sum, 1)));
}

/// `groups` whole groups, and `rest` bytes of one more; the 32-bit sums are moved to 64 bits every `most`
/// groups.
template <class Code, int kRows, int kX>
PYQUANT_TARGET_AVX2 void rows_of(const uint8_t* w, int64_t w_bytes, const int16_t* x, int64_t x_step,
                                 int64_t groups, int64_t rest, int64_t most, double* sums) {
  constexpr int64_t kWords = 16 * Code::kVectors;
  const uint8_t* row[kRows];
  uint8_t last[kRows][32];
  const uint8_t* last_row[kRows];
  __m256i total[kRows][kX];
  PYQUANT_UNROLL for (int r = 0; r < kRows; ++r) {
    row[r] = w + r * w_bytes;
    PYQUANT_UNROLL for (int m = 0; m < kX; ++m) total[r][m] = _mm256_setzero_si256();
    last_row[r] = last[r];
    if (rest == 0) continue;
    std::memset(last[r], 0, sizeof last[r]);
    std::memcpy(last[r], row[r] + 32 * groups, static_cast<size_t>(rest));
  }
  for (int64_t g = 0; g < groups + (rest != 0);) {
    const int64_t end = g + most < groups ? g + most : groups;
    __m256i sum[kRows][kX];
    PYQUANT_UNROLL for (int r = 0; r < kRows; ++r) {
      PYQUANT_UNROLL for (int m = 0; m < kX; ++m) sum[r][m] = _mm256_setzero_si256();
    }
    if (g == groups) {
      add_group<Code>(last_row, 0, x + g * kWords, x_step, sum);
      ++g;
    }
    for (; g < end; ++g) add_group<Code>(row, 32 * g, x + g * kWords, x_step, sum);
    PYQUANT_UNROLL for (int r = 0; r < kRows; ++r) {
      PYQUANT_UNROLL for (int m = 0; m < kX; ++m) total[r][m] =
          _mm256_add_epi64(total[r][m], widened(sum[r][m]));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int m = 0; m < kX; ++m) {
      int64_t lanes[4];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), total[r][m]);
      sums[m * kUnitColumns + r] = static_cast<double>(lanes[0] + lanes[1] + lanes[2] + lanes[3]);
    }
  }
}

template <class Code, int kX>
void columns_of(const uint8_t* w, int64_t w_bytes, const int16_t* x, int64_t x_step, int64_t bytes,
                int64_t most, int64_t columns, double* sums) {
  constexpr int kRows = kX == 1 ? 4 : 2;
  int64_t j = 0;
  for (; j + kRows <= columns; j += kRows) {
    rows_of<Code, kRows, kX>(w + j * w_bytes, w_bytes, x, x_step, bytes / 32, bytes % 32, most, sums + j);
  }
  for (; j < columns; ++j) {
    rows_of<Code, 1, kX>(w + j * w_bytes, w_bytes, x, x_step, bytes / 32, bytes % 32, most, sums + j);
  }
}

template <class Code>
void products(const Linear& problem, const LinearPlan& plan, const int16_t* x, int64_t first, int64_t columns,
              double* sums) {
  const int64_t halves = is_four_bit(problem.w.type) ? 1 : 2;
  const int64_t bytes = (problem.depth * halves + 1) / 2, w_bytes = problem.w.row_step * halves / 2;
  const uint8_t* w = static_cast<const uint8_t*>(problem.w.data) + first * w_bytes;
  const int64_t most = plan.lane_steps / (2 * Code::kVectors);
  switch (problem.rows) {
    case 1:
      return columns_of<Code, 1>(w, w_bytes, x, plan.padded, bytes, most, columns, sums);
    case 2:
      return columns_of<Code, 2>(w, w_bytes, x, plan.padded, bytes, most, columns, sums);
    case 3:
      return columns_of<Code, 3>(w, w_bytes, x, plan.padded, bytes, most, columns, sums);
    default:
      return columns_of<Code, 4>(w, w_bytes, x, plan.padded, bytes, most, columns, sums);
  }
}

}  // namespace

bool has_direct_sums() { return active_isa() >= Isa::avx2; }

void direct_sums(const Linear& problem, const LinearPlan& plan, const int16_t* x, int64_t first,
                 int64_t columns, double* sums) {
  switch (problem.w.type) {
    case Elements::int4:
      return products<Nibbles<true>>(problem, plan, x, first, columns, sums);
    case Elements::uint4:
      return products<Nibbles<false>>(problem, plan, x, first, columns, sums);
    case Elements::int8:
      return products<Octets<true>>(problem, plan, x, first, columns, sums);
    default:
      return products<Octets<false>>(problem, plan, x, first, columns, sums);
  }
}
#else
bool has_direct_sums() { return false; }
void direct_sums(const Linear&, const LinearPlan&, const int16_t*, int64_t, int64_t, double*) {}
#endif

}  // namespace pyquant::kernels
