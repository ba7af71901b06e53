// SPDX-License-Identifier: Apache-2.0
// Arithmetic of two real numbers, each an exact double: in double, and rounded to an integer as if it were
// exact. Private to csrc/kernels.
#pragma once

#include <cmath>

#include "kernels/binary.h"
#include "kernels/exact.h"
#include "kernels/real.h"

namespace pyquant::kernels {

/// a - floor(a / b) * b as a sum that may need two doubles: fmod is exact.
inline Product floor_remainder(double a, double b) {
  const double r = std::fmod(a, b);
  return {r, r != 0.0 && (r < 0.0) != (b < 0.0) ? b : 0.0};
}

/// a op b in double.
inline double binary_real(Binary op, double a, double b) {
  switch (op) {
    case Binary::add:
      return a + b;
    case Binary::sub:
      return a - b;
    case Binary::mul:
      return a * b;
    case Binary::div:
      return a / b;
    case Binary::maximum:
      return a > b ? a : b;
    case Binary::minimum:
      return a < b ? a : b;
    case Binary::pow:
      return std::pow(a, b);
    case Binary::squared_difference:
      return (a - b) * (a - b);
    case Binary::floor_div:
      return floor_quotient(a, b);
    case Binary::floor_mod:
      break;
  }
  const Product r = floor_remainder(a, b);
  return r.a + r.b;
}

/// round_half_away(a op b / scale), limited to lo and hi.
inline int64_t binary_exact(Binary op, double a, double b, const Rounder& to) {
  switch (op) {
    case Binary::add:
      return round_exact({{a, 1.0}, {b, 1.0}}, to.scale, 1.0, to.lo, to.hi);
    case Binary::sub:
      return round_exact({{a, 1.0}, {-b, 1.0}}, to.scale, 1.0, to.lo, to.hi);
    case Binary::mul:
      return round_exact({{a, b}}, to.scale, 1.0, to.lo, to.hi);
    case Binary::div:
      return round_exact({{b < 0.0 ? -a : a, 1.0}}, std::fabs(b), to.scale, to.lo, to.hi);
    case Binary::squared_difference:
      return round_exact({{a, a}, {-2.0 * a, b}, {b, b}}, to.scale, 1.0, to.lo, to.hi);
    case Binary::floor_mod: {
      const Product r = floor_remainder(a, b);
      return round_exact({{r.a, 1.0}, {r.b, 1.0}}, to.scale, 1.0, to.lo, to.hi);
    }
    default:  // the double is exact, or the best there is
      return round_exact({{binary_real(op, a, b), 1.0}}, to.scale, 1.0, to.lo, to.hi);
  }
}

}  // namespace pyquant::kernels
