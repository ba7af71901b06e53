// SPDX-License-Identifier: Apache-2.0
// Some rows of a weight, some elements of each, unpacked to 16 bits for a tile.
#include <algorithm>
#include <cstring>

#include "kernels/dot_parts.h"
#include "kernels/fma_tile.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

/// Packed elements of kBits bits in the order of place_of(), groups * 32 bytes.
template <int kBits, bool kSigned>
void plain_words(const uint8_t* from, int64_t groups, int16_t* to) {
  constexpr int kWord = 16 / kBits, kHalf = 1 << (kBits - 1);
  for (int64_t k = 0; k < groups * 16 * kWord; ++k) {
    const int bits = kBits == 8 ? from[k] : (from[k / 2] >> (k % 2 * 4)) & 15;
    to[place_of(k, kWord)] = static_cast<int16_t>(kSigned ? (bits ^ kHalf) - kHalf : bits);
  }
}

#ifdef PYQUANT_X86
template <int kBits, bool kSigned>
PYQUANT_TARGET_AVX2 void avx2_words(const uint8_t* from, int64_t groups, int16_t* to) {
  constexpr int kWord = 16 / kBits, kRest = 16 - kBits;
  for (int64_t g = 0; g < groups; ++g) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32 * g));
    auto* out = reinterpret_cast<__m256i*>(to + 16 * kWord * g);
    PYQUANT_UNROLL for (int j = 0; j < kWord; ++j) {
      const __m256i up = _mm256_slli_epi16(words, kRest - kBits * j);
      _mm256_storeu_si256(out + j, kSigned ? _mm256_srai_epi16(up, kRest) : _mm256_srli_epi16(up, kRest));
    }
  }
}

#endif

using Words = void (*)(const uint8_t* from, int64_t groups, int16_t* to);

template <int kBits, bool kSigned>
Words words_of() {
#ifdef PYQUANT_X86
  if (active_isa() >= Isa::avx2) return avx2_words<kBits, kSigned>;
#endif
  return plain_words<kBits, kSigned>;
}

Words words_of(Elements e) {
  switch (e) {
    case Elements::int4:
      return words_of<4, true>();
    case Elements::uint4:
      return words_of<4, false>();
    case Elements::int8:
      return words_of<8, true>();
    default:
      return words_of<8, false>();
  }
}

/// A row of packed elements; the last group by way of a copy, since it may be the end of the mapped file.
void unpack_words(Words words, int bits, const uint8_t* from, int64_t count, int16_t* to) {
  const int64_t group = 256 / bits, whole = count / group;
  words(from, whole, to);
  if (count % group == 0) return;
  uint8_t last[32] = {};
  std::memcpy(last, from + 32 * whole, static_cast<size_t>((count % group * bits + 7) / 8));
  words(last, 1, to + group * whole);
}

template <class T>
struct Widen {
  static void scalar(const T* from, int64_t step, int64_t count, int16_t* to) {
    vector(from, step, count, to);
  }
  PYQUANT_INLINE static void vector(const T* __restrict from, int64_t step, int64_t count,
                                    int16_t* __restrict to) {
    if (step == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
    }
  }
};

void widen(const Matrix& w, int64_t first, int64_t step, int64_t count, int16_t* to) {
  switch (w.type) {
    case Elements::int8:
      return dispatch<Widen<int8_t>>(static_cast<const int8_t*>(w.data) + first, step, count, to);
    case Elements::uint8:
      return dispatch<Widen<uint8_t>>(static_cast<const uint8_t*>(w.data) + first, step, count, to);
    case Elements::int16:
      return dispatch<Widen<int16_t>>(static_cast<const int16_t*>(w.data) + first, step, count, to);
    default: {
      const auto* bytes = static_cast<const uint8_t*>(w.data);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = first + i * step;
        to[i] = static_cast<int16_t>(w.type == Elements::int4 ? nibble_at<true>(bytes, at)
                                                              : nibble_at<false>(bytes, at));
      }
    }
  }
}

struct Split {
  static void scalar(int16_t* high, int64_t count, int16_t* low) { vector(high, count, low); }
  PYQUANT_INLINE static void vector(int16_t* __restrict high, int64_t count, int16_t* __restrict low) {
    for (int64_t i = 0; i < count; ++i) {
      low[i] = static_cast<int16_t>(high[i] & 255);
      high[i] = static_cast<int16_t>(high[i] >> 8);
    }
  }
};

}  // namespace

void unpack_rows(const Linear& problem, const LinearPlan& plan, int64_t first, int64_t rows, int64_t begin,
                 int64_t count, int64_t padded, int16_t* panel, int16_t* low) {
  const Matrix& w = problem.w;
  const bool transposed = w.row_step == 1 && w.column_step != 1 && !is_four_bit(w.type);
  if (transposed) {
    transpose_rows(w, first, rows, begin, count, padded, panel);
  } else {
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t at = w.first + (first + n) * w.row_step + begin * w.column_step;
      if (plan.per_word > 1) {
        const int bits = is_four_bit(w.type) ? 4 : 8;
        const auto* bytes = static_cast<const uint8_t*>(w.data) + at * bits / 8;
        unpack_words(words_of(w.type), bits, bytes, count, panel + n * padded);
      } else {
        widen(w, at, w.column_step, count, panel + n * padded);
      }
    }
  }
  const int64_t group = 16 * plan.per_word, tail = plan.per_word > 1 ? up_to(count, group) : count;
  for (int64_t n = 0; n < kUnitColumns; ++n) {
    int16_t* row = panel + n * padded;
    std::fill(row + (n < rows ? tail : 0), row + padded, int16_t{0});
  }
  if (low) dispatch<Split>(panel, kUnitColumns * padded, low);
}

}  // namespace pyquant::kernels
