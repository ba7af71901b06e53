// SPDX-License-Identifier: Apache-2.0
// Two 4-bit integers in a byte, low half first.
#include <type_traits>

#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

template <class Q>
PYQUANT_INLINE bool fits(Q q) {
  if constexpr (std::is_signed_v<Q>) {
    return q >= -8 && q <= 7;
  } else {
    return q <= 15;
  }
}

template <class Q>
struct Pack {
  static bool scalar(const Q* q, int64_t n, uint8_t* packed) { return vector(q, n, packed); }

  PYQUANT_INLINE static bool vector(const Q* __restrict q, int64_t n, uint8_t* __restrict packed) {
    uint8_t wide = 0;
    for (int64_t i = 0; i < n / 2; ++i) {
      const Q low = q[2 * i], high = q[2 * i + 1];
      wide |= static_cast<uint8_t>(!fits(low) | !fits(high));
      packed[i] = static_cast<uint8_t>((low & 15) | ((high & 15) << 4));
    }
    if (n % 2 != 0) {
      wide |= static_cast<uint8_t>(!fits(q[n - 1]));
      packed[n / 2] = static_cast<uint8_t>(q[n - 1] & 15);
    }
    return wide == 0;
  }
};

template <class Q>
struct Unpack {
  static void scalar(const uint8_t* packed, int64_t n, Q* q) { vector(packed, n, q); }

  PYQUANT_INLINE static void vector(const uint8_t* __restrict packed, int64_t n, Q* __restrict q) {
    for (int64_t i = 0; i < n / 2; ++i) {
      q[2 * i] = extend(packed[i] & 15);
      q[2 * i + 1] = extend(packed[i] >> 4);
    }
    if (n % 2 != 0) q[n - 1] = extend(packed[n / 2] & 15);
  }

 private:
  PYQUANT_INLINE static Q extend(int nibble) {
    return static_cast<Q>(std::is_signed_v<Q> ? (nibble ^ 8) - 8 : nibble);
  }
};

}  // namespace

template <class Q>
bool pack_int4(const Q* q, int64_t n, uint8_t* packed) {
  return dispatch<Pack<Q>>(q, n, packed);
}

template <class Q>
void unpack_int4(const uint8_t* packed, int64_t n, Q* q) {
  dispatch<Unpack<Q>>(packed, n, q);
}

template bool pack_int4<int8_t>(const int8_t*, int64_t, uint8_t*);
template bool pack_int4<uint8_t>(const uint8_t*, int64_t, uint8_t*);
template void unpack_int4<int8_t>(const uint8_t*, int64_t, int8_t*);
template void unpack_int4<uint8_t>(const uint8_t*, int64_t, uint8_t*);

}  // namespace pyquant::kernels
