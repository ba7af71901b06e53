// SPDX-License-Identifier: Apache-2.0
// Products of few rows of x, straight from packed weights: decoding one token reads every weight once, so the
// loop must keep up with memory. It goes along one row after the other, as memory does.
#include <cstring>

#include "kernels/dot_parts.h"
#include "kernels/fma_tile.h"

namespace pyquant::kernels {

#ifdef PYQUANT_X86
namespace {

/// Bytes that are asked of memory before they are used; past the end nothing happens.
constexpr int64_t kAhead = 1024;

/// 32 packed bytes of a row of w, with kX rows of x.
template <int kBits, bool kSigned, int kX>
PYQUANT_AVX2_INLINE void add_group(const uint8_t* w, const int16_t* x, int64_t x_step, __m256i (&sum)[kX]) {
  constexpr int kWord = 16 / kBits, kRest = 16 - kBits;
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  PYQUANT_UNROLL for (int j = 0; j < kWord; ++j) {
    const __m256i up = j == kWord - 1 ? words : _mm256_slli_epi16(words, kRest - kBits * j);
    const __m256i weight = kSigned ? _mm256_srai_epi16(up, kRest) : _mm256_srli_epi16(up, kRest);
    PYQUANT_UNROLL for (int m = 0; m < kX; ++m) {
      const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + m * x_step + 16 * j));
      add_words(sum[m], _mm256_madd_epi16(weight, value));
    }
  }
}

PYQUANT_AVX2_INLINE __m256i widened(__m256i sum) {
  return _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(sum)),
                          _mm256_cvtepi32_epi64(_mm256_extracti128_si256(sum, 1)));
}

PYQUANT_AVX2_INLINE int64_t all_of(__m256i sum) {
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  return _mm_extract_epi64(two, 0) + _mm_extract_epi64(two, 1);
}

/// `bytes` of one row; the 32-bit sums are moved to 64 bits every `most` groups.
template <int kBits, bool kSigned, int kX>
PYQUANT_AVX2_INLINE void row_of(const uint8_t* w, int64_t bytes, const int16_t* x, int64_t x_step,
                                int64_t most, double* sums) {
  constexpr int64_t kElements = 256 / kBits;
  const int64_t groups = bytes / 32;
  __m256i total[kX], sum[kX];
  PYQUANT_UNROLL for (int m = 0; m < kX; ++m) total[m] = sum[m] = _mm256_setzero_si256();
  for (int64_t g = 0; g < groups;) {
    const int64_t end = g + most < groups ? g + most : groups;
    for (; g < end; ++g) {
      _mm_prefetch(reinterpret_cast<const char*>(w + 32 * g + kAhead), _MM_HINT_T0);
      add_group<kBits, kSigned>(w + 32 * g, x + g * kElements, x_step, sum);
    }
    PYQUANT_UNROLL for (int m = 0; m < kX; ++m) {
      total[m] = _mm256_add_epi64(total[m], widened(sum[m]));
      sum[m] = _mm256_setzero_si256();
    }
  }
  if (bytes % 32 != 0) {
    uint8_t last[32] = {};
    std::memcpy(last, w + 32 * groups, static_cast<size_t>(bytes % 32));
    add_group<kBits, kSigned>(last, x + groups * kElements, x_step, sum);
    PYQUANT_UNROLL for (int m = 0; m < kX; ++m) total[m] = _mm256_add_epi64(total[m], widened(sum[m]));
  }
  PYQUANT_UNROLL for (int m = 0; m < kX; ++m) sums[m * kUnitColumns] = static_cast<double>(all_of(total[m]));
}

template <int kBits, bool kSigned, int kX>
PYQUANT_TARGET_AVX2 void rows_of(const uint8_t* w, int64_t w_bytes, int64_t bytes, const int16_t* x,
                                 int64_t x_step, int64_t most, int64_t columns, double* sums) {
  for (int64_t j = 0; j < columns; ++j) {
    row_of<kBits, kSigned, kX>(w + j * w_bytes, bytes, x, x_step, most, sums + j);
  }
}

template <int kBits, bool kSigned>
void products(const Linear& problem, const LinearPlan& plan, const int16_t* x, int64_t first, int64_t columns,
              double* sums) {
  const int64_t bytes = (problem.depth * kBits + 7) / 8, w_bytes = problem.w.row_step * kBits / 8;
  const uint8_t* w =
      static_cast<const uint8_t*>(problem.w.data) + problem.w.first * kBits / 8 + first * w_bytes;
  const int64_t most = plan.lane_steps / (2 * 16 / kBits);
  switch (problem.rows) {
    case 1:
      return rows_of<kBits, kSigned, 1>(w, w_bytes, bytes, x, plan.padded, most, columns, sums);
    case 2:
      return rows_of<kBits, kSigned, 2>(w, w_bytes, bytes, x, plan.padded, most, columns, sums);
    case 3:
      return rows_of<kBits, kSigned, 3>(w, w_bytes, bytes, x, plan.padded, most, columns, sums);
    default:
      return rows_of<kBits, kSigned, 4>(w, w_bytes, bytes, x, plan.padded, most, columns, sums);
  }
}

}  // namespace

bool has_direct_sums() { return active_isa() >= Isa::avx2; }

void direct_sums(const Linear& problem, const LinearPlan& plan, const int16_t* x, int64_t first,
                 int64_t columns, double* sums) {
  switch (problem.w.type) {
    case Elements::int4:
      return products<4, true>(problem, plan, x, first, columns, sums);
    case Elements::uint4:
      return products<4, false>(problem, plan, x, first, columns, sums);
    case Elements::int8:
      return products<8, true>(problem, plan, x, first, columns, sums);
    default:
      return products<8, false>(problem, plan, x, first, columns, sums);
  }
}
#else
bool has_direct_sums() { return false; }
void direct_sums(const Linear&, const LinearPlan&, const int16_t*, int64_t, int64_t, double*) {}
#endif

}  // namespace pyquant::kernels
