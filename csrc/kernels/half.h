// SPDX-License-Identifier: Apache-2.0
// 16-bit floats to float32 and back, many at a time. Private to csrc/kernels.
//
// Float16 goes by F16C where the CPU has it, else as convert.h defines it. Instructions of F16C cannot stand
// in a loop that on_portable compiles too. So a kernel of Float16 converts a block that stays in the first
// cache, and runs its loop for float32 on that.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pyquant/kernels.h"

namespace pyquant::kernels {

/// Elements of a block.
constexpr int64_t kHalves = 2048;

/// Whether the version in use has F16C; else a loop over load() and store() is faster than two.
bool has_fast_halves();

/// y[i] = load(x[i]).
void widen(const BFloat16* x, int64_t n, float* y);
void widen(const Float16* x, int64_t n, float* y);
/// store(x[i], y[i]); no x is NaN.
void narrow(const float* x, int64_t n, Float16* y);

/// f(values, at, n) for the blocks of x[begin, end): element i of a block is x[at + i] as float.
template <class F>
void for_blocks(const Float16* x, int64_t begin, int64_t end, F&& f) {
  float values[kHalves];
  for (int64_t at = begin; at < end; at += kHalves) {
    const int64_t n = std::min(kHalves, end - at);
    widen(x + at, n, values);
    f(static_cast<const float*>(values), at, n);
  }
}

}  // namespace pyquant::kernels
