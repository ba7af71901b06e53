// SPDX-License-Identifier: Apache-2.0
// The transpose of a plane, in small squares that stay in registers. Private to csrc/kernels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pyquant::kernels {

/// kSide x kSide elements: row r, column c of `to` is row c, column r of `from`. Strides of rows count bytes;
/// memory needs no alignment.
template <class Cell>
struct Square {
  static constexpr int kSide = 4;
  static void run(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
    Cell cells[kSide][kSide];
    for (int c = 0; c < kSide; ++c) std::memcpy(cells[c], from + c * from_stride, sizeof cells[c]);
    for (int r = 0; r < kSide; ++r) {
      const Cell row[kSide] = {cells[0][r], cells[1][r], cells[2][r], cells[3][r]};
      std::memcpy(to + r * to_stride, row, sizeof row);
    }
  }
};

#if defined(__SSE2__)
// Interleaving the lower and upper halves of rows i and i + n/2, log2(n) times, transposes n x n.
template <>
struct Square<uint8_t> {
  static constexpr int kSide = 16;
  static void run(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
    __m128i a[16], b[16];
    for (int i = 0; i < 16; ++i)
      a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_stride));
    for (int step = 0; step < 2; ++step) {
      interleave(a, b);
      interleave(b, a);
    }
    for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), a[i]);
  }

 private:
  static void interleave(const __m128i* in, __m128i* out) {
    for (int i = 0; i < 8; ++i) {
      out[2 * i] = _mm_unpacklo_epi8(in[i], in[i + 8]);
      out[2 * i + 1] = _mm_unpackhi_epi8(in[i], in[i + 8]);
    }
  }
};

template <>
struct Square<uint16_t> {
  static constexpr int kSide = 8;
  static void run(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; ++i)
      a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_stride));
    interleave(a, b);
    interleave(b, a);
    interleave(a, b);
    for (int i = 0; i < 8; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), b[i]);
  }

 private:
  static void interleave(const __m128i* in, __m128i* out) {
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = _mm_unpacklo_epi16(in[i], in[i + 4]);
      out[2 * i + 1] = _mm_unpackhi_epi16(in[i], in[i + 4]);
    }
  }
};

template <>
struct Square<uint32_t> {
  static constexpr int kSide = 4;
  static void run(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
    __m128i a[4], b[4];
    for (int i = 0; i < 4; ++i)
      a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_stride));
    interleave(a, b);
    interleave(b, a);
    for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), a[i]);
  }

 private:
  static void interleave(const __m128i* in, __m128i* out) {
    for (int i = 0; i < 2; ++i) {
      out[2 * i] = _mm_unpacklo_epi32(in[i], in[i + 2]);
      out[2 * i + 1] = _mm_unpackhi_epi32(in[i], in[i + 2]);
    }
  }
};

template <>
struct Square<uint64_t> {
  static constexpr int kSide = 2;
  static void run(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + from_stride));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi64(a, b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + to_stride), _mm_unpackhi_epi64(a, b));
  }
};
#endif

}  // namespace pyquant::kernels
