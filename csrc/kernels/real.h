// SPDX-License-Identifier: Apache-2.0
// exp and what follows from it in double, as additions and multiplications in one fixed order: loops over
// them vectorize, and every machine computes the same bits. Private to csrc.
//
// Relative errors are below 2^-51. LOG, SIN, COS, POW and erfc are those of the C library (below 2^-52).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/simd.h"

namespace pyquant::kernels {

/// e^x = scale_a * scale_b * (1 + rest), |rest| < 0.42; NaN stays NaN.
struct ExpParts {
  double scale_a;
  double scale_b;
  double rest;
};

/// 2^n for an integer n of -1022 to 1023.
PYQUANT_INLINE double power_of_two(double n) {
  const double shifted = n + (1023.0 + 0x1.8p52);  // the integer lies in the last bits of the mantissa
  uint64_t u;
  std::memcpy(&u, &shifted, sizeof u);
  u <<= 52;
  double out;
  std::memcpy(&out, &u, sizeof out);
  return out;
}

PYQUANT_INLINE ExpParts exp_parts(double x) {
  x = x < -800.0 ? -800.0 : x;
  x = x > 800.0 ? 800.0 : x;
  constexpr double kToInteger = 0x1.8p52;
  const double n = (x * 0x1.71547652b82fep0 + kToInteger) - kToInteger;
  // ln 2 in two parts; the first has zeros at its end, so that n times it is exact.
  const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  // Taylor, |r| < 0.3466: the first term left out is below 2^-57.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = (p * r) * r + r;
  const double half = (n * 0.5 + kToInteger) - kToInteger;
  return {power_of_two(half), power_of_two(n - half), p};
}

PYQUANT_INLINE double real_exp(double x) {
  const ExpParts e = exp_parts(x);
  return ((e.rest * e.scale_a) + e.scale_a) * e.scale_b;
}

/// e^x - 1, without cancellation near 0. x < 80.
PYQUANT_INLINE double real_expm1(double x) {
  const ExpParts e = exp_parts(x);
  const double scale = e.scale_a * e.scale_b;
  return (scale - 1.0) + scale * e.rest;
}

PYQUANT_INLINE double real_logistic(double x) { return 1.0 / (1.0 + real_exp(-x)); }

PYQUANT_INLINE double real_tanh(double x) {
  double size = std::fabs(x);
  size = size > 30.0 ? 30.0 : size;
  const double m = real_expm1(-2.0 * size);
  return std::copysign(-m / (2.0 + m), x);
}

/// GELU with the normal distribution's tail as a logistic function (Hendrycks and Gimpel 2016):
/// x / 2 (1 + tanh(u)) = x logistic(2 u).
PYQUANT_INLINE double real_gelu_tanh(double x) {
  const double u = 0x1.9884533d43651p-1 * (x + 0.044715 * (x * x) * x);  // sqrt(2 / pi)
  return x == -HUGE_VAL ? -0.0 : x * real_logistic(2.0 * u);
}

/// floor(a / b), from which the double quotient may differ where it rounds to an integer: fma has the sign of
/// the remainder.
inline double floor_quotient(double a, double b) {
  const double n = std::floor(a / b);
  if (!(std::fabs(n) < 0x1p52)) return n;
  const double excess = std::fma(n, b, -a);  // n * b - a: of b's sign where n is too large
  return (b > 0.0 ? excess > 0.0 : excess < 0.0) ? n - 1.0 : n;
}

}  // namespace pyquant::kernels
