// SPDX-License-Identifier: Apache-2.0
// ggml's Q4_0 and Q8_0: 32 values and their own half-precision scale. The rule of rounding is ggml's, bit for
// bit (Q4_0 divides by the signed value of largest magnitude, which becomes -8 steps; Q8_0 by the largest
// magnitude, 127 steps), with the scale before it is rounded to half precision. Where ggml's conversion is
// undefined (a scale whose reciprocal overflows, then 0 in half precision) every value is 0.
#include <type_traits>

#include "kernels/convert.h"
#include "kernels/pointwise.h"
#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr int kLength = kBlockLength;
constexpr int kHalf = kLength / 2;

PYQUANT_INLINE void put_half(Float16 d, uint8_t* to) {
  to[0] = static_cast<uint8_t>(d.bits & 255);
  to[1] = static_cast<uint8_t>(d.bits >> 8);
}

PYQUANT_INLINE float get_half(const uint8_t* from) {
  return load(Float16{static_cast<uint16_t>(from[0] | (from[1] << 8))});
}

/// What to multiply by instead of dividing by d.
PYQUANT_INLINE float reciprocal(float d) {
  const float inverse = 1.0f / d;
  return bits_of(inverse) << 1 < 0xff000000u ? inverse : 0.0f;  // Inf (d is 0 or next to it)
}

/// The scale in half precision; false when the block has no finite one.
PYQUANT_INLINE bool put_scale(float d, uint8_t* to) {
  Float16 half;
  store(d, half);
  put_half(half, to);
  return (half.bits & 0x7c00u) != 0x7c00u;
}

/// Copies a block to floats; the largest magnitude, as bits, so that NaN counts as larger than Inf.
template <class T>
PYQUANT_INLINE uint32_t widen_block(const T* __restrict x, float* __restrict v) {
  uint32_t most = 0;
  for (int i = 0; i < kLength; ++i) {
    v[i] = load(x[i]);
    const uint32_t magnitude = bits_of(v[i]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

struct Q4 {
  static constexpr int kBytes = 18;

  PYQUANT_INLINE static bool encode(const float* v, uint32_t most, uint8_t* to) {
    // The first value of that magnitude gives the sign.
    int first = 0;
    while ((bits_of(v[first]) & 0x7fffffffu) != most) ++first;
    const float d = (most ? v[first] : 0.0f) / -8.0f, inverse = reciprocal(d);
    for (int i = 0; i < kHalf; ++i) to[2 + i] = step(v[i], inverse) | (step(v[i + kHalf], inverse) << 4);
    return put_scale(d, to);
  }

  PYQUANT_INLINE static void decode(const uint8_t* from, float* v) {
    const float d = get_half(from);
    for (int i = 0; i < kHalf; ++i) {
      v[i] = static_cast<float>((from[2 + i] & 15) - 8) * d + 0.0f;  // never -0
      v[i + kHalf] = static_cast<float>((from[2 + i] >> 4) - 8) * d + 0.0f;
    }
  }

 private:
  PYQUANT_INLINE static uint8_t step(float v, float inverse) {
    return static_cast<uint8_t>(clamp_number(v * inverse + 8.5f, 0.0f, 15.0f));
  }
};

struct Q8 {
  static constexpr int kBytes = 34;

  PYQUANT_INLINE static bool encode(const float* v, uint32_t most, uint8_t* to) {
    const float d = from_bits(most) / 127.0f, inverse = reciprocal(d);
    for (int i = 0; i < kLength; ++i) {
      const float q = clamp_number(v[i] * inverse, -127.0f, 127.0f);
      to[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(round_small(q)));
    }
    return put_scale(d, to);
  }

  PYQUANT_INLINE static void decode(const uint8_t* from, float* v) {
    const float d = get_half(from);
    for (int i = 0; i < kLength; ++i) v[i] = static_cast<float>(static_cast<int8_t>(from[2 + i])) * d + 0.0f;
  }
};

template <class T, class Format>
struct Encode {
  static bool scalar(const T* x, int64_t blocks, uint8_t* packed) { return vector(x, blocks, packed); }

  PYQUANT_INLINE static bool vector(const T* x, int64_t blocks, uint8_t* packed) {
    bool good = true;
    float v[kLength];
    for (int64_t b = 0; b < blocks; ++b) {
      const uint32_t most = widen_block(x + b * kLength, v);
      good &= Format::encode(v, most, packed + b * Format::kBytes);
    }
    return good;
  }
};

template <class Format>
struct Decode {
  static void scalar(const uint8_t* packed, int64_t blocks, float* x) { vector(packed, blocks, x); }

  PYQUANT_INLINE static void vector(const uint8_t* packed, int64_t blocks, float* x) {
    for (int64_t b = 0; b < blocks; ++b) Format::decode(packed + b * Format::kBytes, x + b * kLength);
  }
};

template <class T, class Format>
struct Simulate {
  static bool scalar(const T* x, int64_t blocks, T* y) { return vector(x, blocks, y); }

  PYQUANT_INLINE static bool vector(const T* x, int64_t blocks, T* y) {
    bool good = true;
    float v[kLength];
    uint8_t packed[Format::kBytes];
    for (int64_t b = 0; b < blocks; ++b) {
      good &= Format::encode(v, widen_block(x + b * kLength, v), packed);
      Format::decode(packed, v);
      for (int i = 0; i < kLength; ++i) store(v[i], y[b * kLength + i]);
    }
    return good;
  }
};

}  // namespace

template <class T>
bool quantize_blocks(const T* x, int64_t blocks, int bits, uint8_t* packed) {
  return bits == 4 ? dispatch<Encode<T, Q4>>(x, blocks, packed) : dispatch<Encode<T, Q8>>(x, blocks, packed);
}

void dequantize_blocks(const uint8_t* packed, int64_t blocks, int bits, float* x) {
  bits == 4 ? dispatch<Decode<Q4>>(packed, blocks, x) : dispatch<Decode<Q8>>(packed, blocks, x);
}

template <class T>
bool fake_quantize_blocks(const T* x, int64_t blocks, int bits, T* y) {
  return bits == 4 ? dispatch<Simulate<T, Q4>>(x, blocks, y) : dispatch<Simulate<T, Q8>>(x, blocks, y);
}

#define PYQUANT_BLOCKS(T)                                             \
  template bool quantize_blocks<T>(const T*, int64_t, int, uint8_t*); \
  template bool fake_quantize_blocks<T>(const T*, int64_t, int, T*);
PYQUANT_BLOCKS(float)
PYQUANT_BLOCKS(BFloat16)
PYQUANT_BLOCKS(Float16)
#undef PYQUANT_BLOCKS

}  // namespace pyquant::kernels
