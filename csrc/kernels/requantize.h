// SPDX-License-Identifier: Apache-2.0
// Integers of one grid on another: the real number (q - zero_point) * scale, rounded once to the other grid,
// half away from zero. Also how integers of 4 to 32 bits are read and written. Private to csrc.
#pragma once

#include <cstdint>

namespace pyquant::kernels {

/// How an integer lies in memory: 4 (two in a byte, low half first), 8, 16 or 32 bits; no alignment is
/// needed.
struct IntKind {
  int bits;
  bool is_signed;
};

/// Elements [first, first + n) of `bytes`; 32 bits are always signed.
void load_ints(IntKind kind, const uint8_t* bytes, int64_t first, int64_t n, int32_t* out);
/// The low bits of the values. A 4-bit element that starts a byte clears the other half, so tensors are
/// written front to back, and end with 0 behind an odd number of elements.
void store_ints(IntKind kind, const int32_t* values, uint8_t* bytes, int64_t first, int64_t n);

struct GridChange {
  float from_scale;
  int32_t from_zero;
  float to_scale;
  int32_t to_zero;
  int32_t lo, hi;  // the ends of the other type
};

/// Correctly rounded and saturated.
int32_t requantize_value(const GridChange& change, int32_t q);
/// The same of n values; y may be q.
void requantize(const GridChange& change, const int32_t* q, int32_t* y, int64_t n);

}  // namespace pyquant::kernels
