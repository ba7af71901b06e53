// SPDX-License-Identifier: Apache-2.0
// float32 from and to the 16-bit floats, branch-free so that loops over it vectorize; private to
// csrc/kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/simd.h"

namespace pyquant::kernels {

PYQUANT_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

PYQUANT_INLINE float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

PYQUANT_INLINE float load(float x) { return x; }

PYQUANT_INLINE float load(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

PYQUANT_INLINE float load(Float16 x) {
  // Exponent and mantissa, shifted into place, are a float32 that is 2^-112 too small; denormals included.
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t finite = bits_of(from_bits(magnitude << 13) * 0x1p112f);
  // Inf; NaN with its payload and the bit that makes it quiet, as F16C gives it.
  const uint32_t special = 0x7f800000u | (magnitude << 13) | (magnitude > 0x7c00u ? 0x400000u : 0u);
  return from_bits((static_cast<uint32_t>(x.bits & 0x8000u) << 16) |
                   (magnitude >= 0x7c00u ? special : finite));
}

// The stores round to nearest even. x is not NaN; of others that may be, see store_any.
PYQUANT_INLINE void store(float x, float& out) { out = x; }

PYQUANT_INLINE void store(float x, BFloat16& out) {
  const uint32_t u = bits_of(x);
  out.bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

PYQUANT_INLINE void store(float x, Float16& out) {
  const uint32_t u = bits_of(x);
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Below 2^-14 the unit is 2^-24: adding 0.5 puts it into the last mantissa bit, where the addition rounds.
  const uint32_t denormal = bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? denormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and more round to Inf
  out.bits = static_cast<uint16_t>(half | ((u >> 16) & 0x8000u));
}

/// The store of any number: NaN stays one.
inline void store_any(float x, float& out) { out = x; }
inline void store_any(float x, BFloat16& out) { x == x ? store(x, out) : void(out.bits = 0x7fc0); }
inline void store_any(float x, Float16& out) { x == x ? store(x, out) : void(out.bits = 0x7e00); }

}  // namespace pyquant::kernels
