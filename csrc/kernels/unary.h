// SPDX-License-Identifier: Apache-2.0
// Functions of one value: their definition in double, and loops over float32, plain integers and quantized
// integers. Tables of them are function_table.h. Private to csrc.
//
// Rounding
//   float32: the double rounded to float32; where one float32 operation is exact or correctly rounded, that.
//   quantized: round_half_away(f(x) / scale) of the real x, once, saturated. NEG ABS SQRT RSQRT SQUARE FLOOR
//   CEIL
//     ROUND RELU RELU6 LEAKY_RELU are correctly rounded. The others are, except where f(x) / scale lies
//     within 1e-9 of a step (an integer and a half): there the last bits of the double decide.
//   Outside the domain: what IEEE 754 says, then the rounding contract (qparams.h). SQRT, RSQRT and LOG of
//     negatives are NaN: the lowest integer. LOG of 0 is -inf: the lowest. RSQRT of 0 is +inf: the highest.
//   ROUND is half to even, as TFLite's, TICO's and torch's.
#pragma once

#include <cstdint>

#include "pyquant/kernels.h"

namespace pyquant::kernels {

enum class Unary : uint8_t {
  neg,
  abs,
  sqrt,
  rsqrt,
  exp,
  log,
  square,
  floor,
  ceil,
  round,
  sin,
  cos,
  tanh,
  logistic,
  relu,
  relu6,
  gelu,       // with erf
  gelu_tanh,  // approximate
  elu,
  leaky_relu,
};

struct UnaryFunction {
  Unary kind;
  float alpha = 0.0f;  // of leaky_relu: f(x) = alpha * x below 0
};

/// f(x) in double.
double unary_real(UnaryFunction f, double x);

/// y[i] = f(x[i]); x may be y.
void unary(UnaryFunction f, const float* x, float* y, int64_t n);

/// T: int32_t, int64_t; neg, abs and square, which wrap (abs of the lowest is the lowest).
template <class T>
void unary_integers(Unary kind, const T* x, T* y, int64_t n);

/// The integer of f(x) for the integer q of x.
int32_t unary_quantized(UnaryFunction f, int32_t q, ScaleZeroPoint in, ScaleZeroPoint out, Grid grid);

/// The same for n integers, value by value. Q: int8_t, uint8_t, int16_t.
template <class Q>
void unary_quantized(UnaryFunction f, const Q* x, ScaleZeroPoint in, Q* y, ScaleZeroPoint out, Grid grid,
                     int64_t n);

}  // namespace pyquant::kernels
