// SPDX-License-Identifier: Apache-2.0
// Some rows of a weight, some elements of each, dequantized to float32 for a tile: (q - zero) * scale.
#include <algorithm>
#include <cstring>

#include "kernels/convert.h"
#include "kernels/dot_parts.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

struct Dequantize {
  static void scalar(const int32_t* q, int64_t count, int32_t zero, float scale, float* to) {
    vector(q, count, zero, scale, to);
  }
  PYQUANT_INLINE static void vector(const int32_t* __restrict q, int64_t count, int32_t zero, float scale,
                                    float* __restrict to) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(q[i] - zero) * scale;
  }
};

#ifdef PYQUANT_X86
/// Eight bytes as float32. Integers of 9 bits are exact in float32, so that it may subtract the zero point.
template <bool kSigned>
PYQUANT_AVX2_INLINE void put_eight(__m128i bytes, __m256 zero, __m256 scale, float* to) {
  const __m256i wide = kSigned ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
  _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(wide), zero), scale));
}

template <bool kSigned>
PYQUANT_AVX2_INLINE void put_sixteen(__m128i bytes, __m256 zero, __m256 scale, float* to) {
  put_eight<kSigned>(bytes, zero, scale, to);
  put_eight<kSigned>(_mm_srli_si128(bytes, 8), zero, scale, to + 8);
}

/// Whole groups of 16 elements; returns how many that were.
template <bool kSigned>
PYQUANT_TARGET_AVX2 int64_t avx2_bytes(const uint8_t* from, int64_t count, float zero, float scale,
                                       float* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    put_sixteen<kSigned>(bytes, _mm256_set1_ps(zero), _mm256_set1_ps(scale), to + i);
  }
  return i;
}

template <bool kSigned>
PYQUANT_TARGET_AVX2 int64_t avx2_nibbles(const uint8_t* from, int64_t count, float zero, float scale,
                                         float* to) {
  const __m128i low_half = _mm_set1_epi8(15);
  // A sign bit of a nibble counts -8: flipped, it counts +8 of what is 8 too much.
  const __m128i flip = _mm_set1_epi8(kSigned ? 8 : 0);
  const float offset = kSigned ? zero + 8.0f : zero;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i / 2));
    const __m128i low = _mm_and_si128(bytes, low_half),
                  high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low_half);
    const __m128i all = _mm_xor_si128(_mm_unpacklo_epi8(low, high), flip);
    put_sixteen<false>(all, _mm256_set1_ps(offset), _mm256_set1_ps(scale), to + i);
  }
  return i;
}

/// ggml's blocks, as dequantize_blocks(): never -0.
PYQUANT_TARGET_AVX2 void avx2_blocks(const uint8_t* from, int64_t blocks, int bits, float* to) {
  const __m256 eight = _mm256_set1_ps(8.0f), none = _mm256_setzero_ps();
  const __m128i low_half = _mm_set1_epi8(15);
  for (int64_t b = 0; b < blocks; ++b, to += kBlockLength) {
    const uint8_t* block = from + b * block_bytes(bits);
    Float16 half;
    std::memcpy(&half, block, 2);
    const __m256 scale = _mm256_set1_ps(_cvtsh_ss(half.bits));
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 2));
    if (bits == 4) {
      put_sixteen<false>(_mm_and_si128(first, low_half), eight, scale, to);
      put_sixteen<false>(_mm_and_si128(_mm_srli_epi16(first, 4), low_half), eight, scale, to + 16);
    } else {
      put_sixteen<true>(first, none, scale, to);
      put_sixteen<true>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 18)), none, scale, to + 16);
    }
    for (int i = 0; i < kBlockLength; i += 8) {
      _mm256_storeu_ps(to + i, _mm256_add_ps(_mm256_loadu_ps(to + i), none));
    }
  }
}
#endif

/// The elements that there is a faster way for; the rest is left to the definition.
int64_t quick_row(const Matrix& w, int64_t at, int64_t count, int32_t zero, float scale, float* to) {
#ifdef PYQUANT_X86
  if (active_isa() < Isa::avx2 || w.column_step != 1) return 0;
  const auto* bytes = static_cast<const uint8_t*>(w.data);
  const auto from = static_cast<float>(zero);
  switch (w.type) {
    case Elements::int8:
      return avx2_bytes<true>(bytes + at, count, from, scale, to);
    case Elements::uint8:
      return avx2_bytes<false>(bytes + at, count, from, scale, to);
    case Elements::int4:
      return at % 2 ? 0 : avx2_nibbles<true>(bytes + at / 2, count, from, scale, to);
    case Elements::uint4:
      return at % 2 ? 0 : avx2_nibbles<false>(bytes + at / 2, count, from, scale, to);
    default:
      return 0;
  }
#else
  return 0;
#endif
}

void grid_row(const Matrix& w, int64_t at, int64_t count, int32_t zero, float scale, float* to) {
  const int64_t done = quick_row(w, at, count, zero, scale, to);
  int32_t integers[kFloatBlock];
  load_elements(w.type, w.data, at + done * w.column_step, w.column_step, count - done, 0, integers);
  dispatch<Dequantize>(static_cast<const int32_t*>(integers), count - done, zero, scale, to + done);
}

void block_row(const Matrix& w, int64_t at, int64_t count, float* to) {
  const int bits = w.type == Elements::q4_0 ? 4 : 8;
  const auto* blocks = static_cast<const uint8_t*>(w.data) + at / kBlockLength * block_bytes(bits);
#ifdef PYQUANT_X86
  if (active_isa() >= Isa::avx2) return avx2_blocks(blocks, count / kBlockLength, bits, to);
#endif
  dequantize_blocks(blocks, count / kBlockLength, bits, to);
}

}  // namespace

void unpack_rows(const Linear& problem, int64_t first, int64_t rows, int64_t begin, int64_t count,
                 int64_t padded, float* panel) {
  const Matrix& w = problem.w;
  const RowScales& scales = problem.w_scales;
  const bool transposed = w.type == Elements::float32 && w.row_step == 1 && w.column_step != 1;
  if (transposed) transpose_rows(w, first, rows, begin, count, padded, panel);
  for (int64_t n = 0; n < kUnitColumns; ++n) {
    float* row = panel + n * padded;
    std::fill(row + (n < rows ? count : 0), row + padded, 0.0f);
    if (n >= rows || transposed) continue;
    const int64_t at = w.first + (first + n) * w.row_step + begin * w.column_step;
    if (is_grid(w.type)) {
      const int64_t c = (first + n) * scales.step;
      grid_row(w, at, count, static_cast<int32_t>(scales.zero ? scales.zero[c] : 0), scales.scale[c], row);
    } else if (w.type == Elements::q4_0 || w.type == Elements::q8_0) {
      block_row(w, at, count, row);
    } else {
      load_elements(w.type, w.data, at, w.column_step, count, row);
    }
  }
}

}  // namespace pyquant::kernels
