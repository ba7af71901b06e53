// SPDX-License-Identifier: Apache-2.0
// Numbers of one type as numbers of another, as CAST wants them. Private to csrc.
#pragma once

#include <cstdint>

namespace pyquant::kernels {

enum class Number : uint8_t {
  float32,
  float16,
  bfloat16,
  float64,
  int4,
  uint4,
  int8,
  uint8,
  int16,
  uint16,
  int32,
  uint32,
  int64,
  uint64,
  boolean,  // one byte; all but 0 are true, 1 is written
};

/// Elements [begin, end) of x as elements [begin, end) of y; no alignment is needed, `begin` is even.
///   float to integer: towards zero; beyond the type its end, NaN becomes 0. (ATen and NumPy give the same
///   where
///     the value fits, and what the CPU does elsewhere.)
///   integer to integer: the low bits, as ATen and NumPy do.
///   integer to float: the nearest, ties to even; to the 16-bit floats by way of float32, as ATen does.
///   float to float: the nearest, ties to even; float64 to the 16-bit floats by way of float32. NaN stays
///   NaN. to bool: whether it is not 0 (NaN is not).
void cast(Number from, const uint8_t* x, Number to, uint8_t* y, int64_t begin, int64_t end);

}  // namespace pyquant::kernels
