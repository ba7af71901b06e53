// SPDX-License-Identifier: Apache-2.0
// Arithmetic and comparisons of two operands that broadcast. Private to csrc.
//
// Rounding
//   quantized: round_half_away(a op b / scale) of the real numbers that the integers stand for, once,
//   saturated;
//     correctly rounded, POW except where it lies within 1e-9 of a step. x / 0 is infinite or NaN, as in IEEE
//     754, and becomes an end of the grid by the rounding contract (qparams.h).
//   float32: ADD SUB MUL DIV are one float32 operation; POW, SQUARED_DIFFERENCE, FLOOR_DIV and FLOOR_MOD are
//     computed in double and rounded. MAXIMUM and MINIMUM keep NaN.
//   int32, int64: wrap around. DIV rounds to 0, FLOOR_DIV down, FLOOR_MOD has the divisor's sign; all three
//   are
//     0 where the divisor is 0. POW with a negative exponent rounds to 0 (0 to a negative power is 0).
//   A fused activation limits the real number, before it is rounded.
#pragma once

#include <cstdint>

#include "kernels/binary_line.h"
#include "kernels/broadcast.h"
#include "kernels/channels.h"
#include "kernels/fused.h"
#include "kernels/reals.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {

enum class Binary : uint8_t {
  add,
  sub,
  mul,
  div,
  maximum,
  minimum,
  pow,
  squared_difference,
  floor_div,
  floor_mod
};
enum class Compare : uint8_t { equal, not_equal, greater, greater_equal, less, less_equal };

/// Where a quantized operand of a binary operator lies on the real line; one scale for all of it.
struct BinaryPlan {
  Binary op;
  ScaleZeroPoint a;
  ScaleZeroPoint b;
  Rounder out;
  bool tanh = false;
  // The scales that the loops multiply with. Where the quotients of scales are short numbers, they take the
  // place of the scales: everything is exact then, and nothing near a step needs a second look.
  double a_scale = 0.0;
  double b_scale = 0.0;
  double inverse = 0.0;
  BinaryLine line = {};  // where there is a shorter way

  static BinaryPlan make(Binary op, Fused fused, ScaleZeroPoint a, ScaleZeroPoint b, ScaleZeroPoint out,
                         Grid grid);
};

/// Output elements [begin, end) of the map. Q: int8_t, uint8_t, int16_t.
template <class Q>
void binary_quantized(const BinaryPlan& plan, const Broadcast& map, const Q* a, const Q* b, Q* y,
                      int64_t begin, int64_t end);
/// The same of real numbers, with a grid for each channel of the output.
void binary_channels(Binary op, bool tanh, const Broadcast& map, const double* a, const double* b,
                     const ChannelOutput& y, int64_t begin, int64_t end);
/// T: float, int32_t, int64_t. Integers have no fused tanh.
template <class T>
void binary(Binary op, Fused fused, const Broadcast& map, const T* a, const T* b, T* y, int64_t begin,
            int64_t end);

/// T: float, double, int32_t, int64_t, uint8_t (bool: 0 or not). y is 0 or 1. NaN equals nothing.
template <class T>
void compare(Compare op, const Broadcast& map, const T* a, const T* b, uint8_t* y, int64_t begin,
             int64_t end);
/// Of the real numbers, which are compared exactly.
template <class Q>
void compare_quantized(Compare op, const Broadcast& map, const Q* a, ScaleZeroPoint a_q, const Q* b,
                       ScaleZeroPoint b_q, uint8_t* y, int64_t begin, int64_t end);

enum class Logic : uint8_t { logical_and, logical_or };
void logic(Logic op, const Broadcast& map, const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t begin,
           int64_t end);
void logical_not(const uint8_t* x, uint8_t* y, int64_t n);

}  // namespace pyquant::kernels
