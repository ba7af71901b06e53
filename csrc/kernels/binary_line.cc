// SPDX-License-Identifier: Apache-2.0
// One loop for each type, kind and way of walking. Doubles are rounded by adding a number whose last bit
// is 1.
#include "kernels/binary_line.h"

#include <cmath>
#include <cstring>

#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

constexpr double kToInteger = 0x1.8p52;

PYQUANT_INLINE int64_t bits_of(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

/// kExact: nothing is near a step unless it is one (a tie), and all are multiples of 2^-24: an eighth of that
/// sends ties away from 0.
template <class Q, BinaryLine::Kind kKind, int kA, int kB, bool kExact>
struct Line {
  PYQUANT_INLINE static bool run(const BinaryLine& p, const Rounder& to, const Q* __restrict a,
                                 const Q* __restrict b, int64_t n, Q* __restrict y) {
    const double a_factor = p.a_factor, b_factor = p.b_factor, offset = p.offset, limit = 0.5 - to.near;
    const int32_t a_zero = p.a_zero, b_zero = p.b_zero, lo = to.lo, hi = to.hi, zero_point = to.zero_point;
    int64_t near = 0;  // negative once a sign bit is in it
    for (int64_t i = 0; i < n; ++i) {
      double v;
      if constexpr (kKind == BinaryLine::sum) {
        v = static_cast<double>(a[i * kA]) * a_factor + (static_cast<double>(b[i * kB]) * b_factor + offset);
      } else {
        v = static_cast<double>(a[i * kA] - a_zero) * static_cast<double>(b[i * kB] - b_zero) * a_factor;
      }
      if constexpr (kExact) v += std::copysign(0x1p-27, v);
      const double nearest = (v + kToInteger) - kToInteger;
      if constexpr (!kExact) near |= bits_of(limit - std::fabs(v - nearest));
      auto q = static_cast<int32_t>(nearest);
      q = q > lo ? q : lo;
      q = q < hi ? q : hi;
      y[i] = static_cast<Q>(q + zero_point);
    }
    return near >= 0;
  }
  static bool scalar(const BinaryLine* p, const Rounder* to, const Q* a, const Q* b, int64_t n, Q* y) {
    return run(*p, *to, a, b, n, y);
  }
  PYQUANT_INLINE static bool vector(const BinaryLine* p, const Rounder* to, const Q* a, const Q* b, int64_t n,
                                    Q* y) {
    return run(*p, *to, a, b, n, y);
  }
};

template <class Q, bool kLargest, int kA, int kB>
struct Choose {
  static void scalar(const Q* a, const Q* b, int64_t n, Q* y) { vector(a, b, n, y); }
  PYQUANT_INLINE static void vector(const Q* __restrict a, const Q* __restrict b, int64_t n,
                                    Q* __restrict y) {
    for (int64_t i = 0; i < n; ++i) {
      const Q p = a[i * kA], q = b[i * kB];
      y[i] = kLargest ? (p > q ? p : q) : (p < q ? p : q);
    }
  }
};

template <class Q, bool kLargest>
bool choose(const Run& run, const Q* a, const Q* b, int64_t n, Q* y) {
  if (run.a_stride == 0) {
    dispatch<Choose<Q, kLargest, 0, 1>>(a, b, n, y);
  } else if (run.b_stride == 0) {
    dispatch<Choose<Q, kLargest, 1, 0>>(a, b, n, y);
  } else {
    dispatch<Choose<Q, kLargest, 1, 1>>(a, b, n, y);
  }
  return true;
}

template <class Q, BinaryLine::Kind kKind, bool kExact>
bool walk(const BinaryLine& line, const Rounder& to, const Run& run, const Q* a, const Q* b, int64_t n,
          Q* y) {
  if (run.a_stride == 0) return dispatch<Line<Q, kKind, 0, 1, kExact>>(&line, &to, a, b, n, y);
  if (run.b_stride == 0) return dispatch<Line<Q, kKind, 1, 0, kExact>>(&line, &to, a, b, n, y);
  return dispatch<Line<Q, kKind, 1, 1, kExact>>(&line, &to, a, b, n, y);
}

}  // namespace

template <class Q>
bool run_line(const BinaryLine& line, const Rounder& to, const Run& run, const Q* a, const Q* b, int64_t n,
              Q* y) {
  if (line.kind == BinaryLine::maximum) return choose<Q, true>(run, a, b, n, y);
  if (line.kind == BinaryLine::minimum) return choose<Q, false>(run, a, b, n, y);
  const bool exact = to.near == 0.0;
  if (line.kind == BinaryLine::sum) {
    return exact ? walk<Q, BinaryLine::sum, true>(line, to, run, a, b, n, y)
                 : walk<Q, BinaryLine::sum, false>(line, to, run, a, b, n, y);
  }
  return exact ? walk<Q, BinaryLine::product, true>(line, to, run, a, b, n, y)
               : walk<Q, BinaryLine::product, false>(line, to, run, a, b, n, y);
}

template bool run_line(const BinaryLine&, const Rounder&, const Run&, const int8_t*, const int8_t*, int64_t,
                       int8_t*);
template bool run_line(const BinaryLine&, const Rounder&, const Run&, const uint8_t*, const uint8_t*, int64_t,
                       uint8_t*);
template bool run_line(const BinaryLine&, const Rounder&, const Run&, const int16_t*, const int16_t*, int64_t,
                       int16_t*);

}  // namespace pyquant::kernels
