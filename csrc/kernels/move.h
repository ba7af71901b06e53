// SPDX-License-Identifier: Apache-2.0
// Elements copied between arrays with strides: transposes, slices, joins, repeats. Elements have 4 (two in a
// byte, low half first), 8, 16, 32 or 64 bits, and memory needs no alignment. Private to csrc.
#pragma once

#include <cstdint>

#include "kernels/nest.h"
#include "kernels/threads.h"

namespace pyquant::kernels {

/// Array 0 is read, array 1 written; strides and offsets count elements.
using CopyNest = Nest<2>;

/// One end of a copy: element `offset` of `bytes` is the first.
struct ReadEnd {
  const uint8_t* bytes;
  int64_t offset;
};
struct WriteEnd {
  uint8_t* bytes;
  int64_t offset;
};

/// to[offset + i * stride ...] = from[offset + i * stride ...] for all indices of the nest; the arrays do not
/// overlap. Elements of 4 bits leave the other half of a byte as it is, and run in the caller alone.
void move(Threads& threads, const CopyNest& nest, int bits, ReadEnd from, WriteEnd to);

/// Elements [offset, offset + n) become the first element of `value`.
void fill(int bits, const uint8_t* value, WriteEnd to, int64_t n);

inline int get_half(const uint8_t* bytes, int64_t i) { return bytes[i / 2] >> (4 * (i & 1)) & 15; }
inline void set_half(uint8_t* bytes, int64_t i, int value) {
  const int shift = 4 * static_cast<int>(i & 1);
  bytes[i / 2] = static_cast<uint8_t>((bytes[i / 2] & ~(15 << shift)) | (value & 15) << shift);
}

}  // namespace pyquant::kernels
