// SPDX-License-Identifier: Apache-2.0
// Computed in double; where the result lies near a step, in exact arithmetic.
#include "kernels/requantize.h"

#include <algorithm>
#include <cstring>

#include "kernels/exact.h"
#include "kernels/move.h"

namespace pyquant::kernels {
namespace {

template <class Q>
void load_as(const uint8_t* bytes, int64_t first, int64_t n, int32_t* out) {
  const uint8_t* from = bytes + first * static_cast<int64_t>(sizeof(Q));
  for (int64_t i = 0; i < n; ++i) {
    Q q;
    std::memcpy(&q, from + i * static_cast<int64_t>(sizeof(Q)), sizeof q);
    out[i] = static_cast<int32_t>(q);
  }
}

template <class Q>
void store_as(const int32_t* values, uint8_t* bytes, int64_t first, int64_t n) {
  uint8_t* to = bytes + first * static_cast<int64_t>(sizeof(Q));
  for (int64_t i = 0; i < n; ++i) {
    const Q q = static_cast<Q>(values[i]);
    std::memcpy(to + i * static_cast<int64_t>(sizeof(Q)), &q, sizeof q);
  }
}

constexpr int64_t kBlock = 64;

struct Change {
  static void scalar(const GridChange* c, const int32_t* q, int32_t* y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = requantize_value(*c, q[i]);
  }

  PYQUANT_INLINE static void vector(const GridChange* c, const int32_t* q, int32_t* y, int64_t n) {
    const double ratio = static_cast<double>(c->from_scale) / static_cast<double>(c->to_scale);
    const double from_zero = c->from_zero, to_zero = c->to_zero;
    const double lo = c->lo - to_zero, hi = c->hi - to_zero;
    // Where the quotient is a float32, products with integers of 29 bits are exact, and so is the sum with a
    // half.
    const bool exact =
        std::fma(ratio, static_cast<double>(c->to_scale), -static_cast<double>(c->from_scale)) == 0 &&
        static_cast<double>(static_cast<float>(ratio)) == ratio;
    const double margin = exact ? -1.0 : 0x1p-47, most = exact ? 0x1p28 : 0x1p40;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t length = std::min(kBlock, n - begin);
      int32_t result[kBlock];
      int32_t unsure = 0;
      for (int64_t i = 0; i < length; ++i) {
        const double steps = q[begin + i] - from_zero, v = steps * ratio;
        const double size = std::fabs(v), sum = size + 0.5, whole = std::floor(sum);
        // How far the sum is from an integer, which is how far the size is from a step.
        const double above = sum - whole, below = 1.0 - above, distance = above < below ? above : below;
        unsure |= !(distance > size * margin) | !(std::fabs(steps) < most) ? 1 : 0;
        const double r = __builtin_copysign(whole, v), low = r > lo ? r : lo;
        result[i] = static_cast<int32_t>((low < hi ? low : hi) + to_zero);
      }
      if (unsure != 0) {
        for (int64_t i = 0; i < length; ++i) result[i] = requantize_value(*c, q[begin + i]);
      }
      std::memcpy(y + begin, result, static_cast<size_t>(length) * sizeof(int32_t));
    }
  }
};

}  // namespace

void load_ints(IntKind kind, const uint8_t* bytes, int64_t first, int64_t n, int32_t* out) {
  switch (kind.bits) {
    case 4:
      for (int64_t i = 0; i < n; ++i) {
        const int half = get_half(bytes, first + i);
        out[i] = kind.is_signed ? (half ^ 8) - 8 : half;
      }
      return;
    case 8:
      return kind.is_signed ? load_as<int8_t>(bytes, first, n, out) : load_as<uint8_t>(bytes, first, n, out);
    case 16:
      return kind.is_signed ? load_as<int16_t>(bytes, first, n, out)
                            : load_as<uint16_t>(bytes, first, n, out);
    default:
      return load_as<int32_t>(bytes, first, n, out);
  }
}

void store_ints(IntKind kind, const int32_t* values, uint8_t* bytes, int64_t first, int64_t n) {
  switch (kind.bits) {
    case 4:
      for (int64_t i = 0; i < n; ++i) {
        if (((first + i) & 1) == 0) bytes[(first + i) / 2] = 0;
        set_half(bytes, first + i, values[i] & 15);
      }
      return;
    case 8:
      return store_as<uint8_t>(values, bytes, first, n);
    case 16:
      return store_as<uint16_t>(values, bytes, first, n);
    default:
      return store_as<int32_t>(values, bytes, first, n);
  }
}

int32_t requantize_value(const GridChange& c, int32_t q) {
  const double steps = static_cast<double>(q) - c.from_zero;
  const int64_t lo = static_cast<int64_t>(c.lo) - c.to_zero, hi = static_cast<int64_t>(c.hi) - c.to_zero;
  const int64_t rounded =
      round_exact({{steps, static_cast<double>(c.from_scale)}}, static_cast<double>(c.to_scale), 1.0, lo, hi);
  return static_cast<int32_t>(rounded + c.to_zero);
}

void requantize(const GridChange& change, const int32_t* q, int32_t* y, int64_t n) {
  dispatch<Change>(&change, q, y, n);
}

}  // namespace pyquant::kernels
