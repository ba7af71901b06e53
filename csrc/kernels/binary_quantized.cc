// SPDX-License-Identifier: Apache-2.0
// Arithmetic on quantized operands: a block of each as exact doubles, the operation in double, and rounding.
// What lies near a step is computed again in exact arithmetic.
#include <algorithm>
#include <cmath>

#include "kernels/binary.h"
#include "kernels/binary_real.h"
#include "kernels/real.h"
#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

/// Elements of which one that lies near a step sends all to the long way.
constexpr int64_t kLine = 2048;

template <Binary kOp>
struct RealLoop {
  static void scalar(const double* a, const double* b, int64_t n, double inverse, double* v) {
    for (int64_t i = 0; i < n; ++i) v[i] = binary_real(kOp, a[i], b[i]) * inverse;
  }
  PYQUANT_INLINE static void vector(const double* __restrict a, const double* __restrict b, int64_t n,
                                    double inverse, double* __restrict v) {
    for (int64_t i = 0; i < n; ++i) {
      double y;
      if constexpr (kOp == Binary::add) y = a[i] + b[i];
      if constexpr (kOp == Binary::sub) y = a[i] - b[i];
      if constexpr (kOp == Binary::mul) y = a[i] * b[i];
      if constexpr (kOp == Binary::div) y = a[i] / b[i];
      if constexpr (kOp == Binary::maximum) y = a[i] > b[i] ? a[i] : b[i];
      if constexpr (kOp == Binary::minimum) y = a[i] < b[i] ? a[i] : b[i];
      if constexpr (kOp == Binary::squared_difference) y = (a[i] - b[i]) * (a[i] - b[i]);
      v[i] = y * inverse;
    }
  }
};

void real_block(Binary op, const double* a, const double* b, int64_t n, double inverse, double* v) {
  switch (op) {
    case Binary::add:
      return dispatch<RealLoop<Binary::add>>(a, b, n, inverse, v);
    case Binary::sub:
      return dispatch<RealLoop<Binary::sub>>(a, b, n, inverse, v);
    case Binary::mul:
      return dispatch<RealLoop<Binary::mul>>(a, b, n, inverse, v);
    case Binary::div:
      return dispatch<RealLoop<Binary::div>>(a, b, n, inverse, v);
    case Binary::maximum:
      return dispatch<RealLoop<Binary::maximum>>(a, b, n, inverse, v);
    case Binary::minimum:
      return dispatch<RealLoop<Binary::minimum>>(a, b, n, inverse, v);
    case Binary::squared_difference:
      return dispatch<RealLoop<Binary::squared_difference>>(a, b, n, inverse, v);
    default:
      for (int64_t i = 0; i < n; ++i) v[i] = binary_real(op, a[i], b[i]) * inverse;
  }
}

/// A multiple of 2^-low_bits below 2^high_bits.
bool is_short(double ratio, int low_bits, int high_bits) {
  return ratio < std::ldexp(1.0, high_bits) &&
         std::ldexp(ratio, low_bits) == std::floor(std::ldexp(ratio, low_bits));
}

bool divides(double ratio, double divisor, double number) { return std::fma(ratio, divisor, -number) == 0.0; }

/// Takes the quotients of scales where all doubles are exact then: 18 bits of each integer, 2^29 at most and
/// 24 bits after the point for a sum; 34 bits of two integers' product, and 18 of the quotient.
void use_short_ratios(BinaryPlan* plan) {
  const double a = plan->a.scale, b = plan->b.scale, out = plan->out.scale;
  if (plan->op == Binary::mul) {
    const double ratio = a * b / out;
    if (!is_short(ratio, 18, 1) || !divides(ratio, out, a * b)) return;
    plan->a_scale = ratio;
    plan->b_scale = 1.0;
  } else if (plan->op == Binary::add || plan->op == Binary::sub || plan->op == Binary::maximum ||
             plan->op == Binary::minimum) {
    const double of_a = a / out, of_b = b / out;
    if (!is_short(of_a, 24, 10) || !divides(of_a, out, a)) return;
    if (!is_short(of_b, 24, 10) || !divides(of_b, out, b)) return;
    plan->a_scale = of_a;
    plan->b_scale = of_b;
  } else {
    return;
  }
  plan->inverse = 1.0;
  plan->out.near = 0.0;
}

bool one_grid(const BinaryPlan& plan) {
  return plan.a.scale == plan.b.scale && plan.a.scale == static_cast<float>(plan.out.scale) &&
         plan.a.zero_point == plan.b.zero_point && plan.a.zero_point == plan.out.zero_point;
}

/// Takes the short way for sums and products whose results, and all that they are made of, stay below 2^31.
void use_line(Grid grid, BinaryPlan* plan) {
  const double a = plan->a_scale * plan->inverse, b = plan->b_scale;
  BinaryLine line;
  line.a_zero = plan->a.zero_point;
  line.b_zero = plan->b.zero_point;
  const auto largest = [&](ScaleZeroPoint q) {
    return static_cast<double>(std::max(grid.qmax - q.zero_point, q.zero_point - grid.qmin));
  };
  double most;
  if (plan->op == Binary::add || plan->op == Binary::sub) {
    line.kind = BinaryLine::sum;
    line.a_factor = a;
    line.b_factor = (plan->op == Binary::sub ? -b : b) * plan->inverse;
    line.offset = -(line.a_zero * line.a_factor + line.b_zero * line.b_factor);
    most = 0x1p17 * (line.a_factor + std::fabs(line.b_factor));
  } else if (plan->op == Binary::mul) {
    line.kind = BinaryLine::product;
    line.a_factor = a * b;
    most = largest(plan->a) * largest(plan->b) * line.a_factor;
  } else if ((plan->op == Binary::maximum || plan->op == Binary::minimum) && one_grid(*plan)) {
    line.kind = plan->op == Binary::maximum ? BinaryLine::maximum : BinaryLine::minimum;
    most = 0.0;
  } else {
    return;
  }
  if (most < 0x1p31) plan->line = line;
}

template <class Q>
void run_block(const BinaryPlan& plan, const Q* a, int64_t a_stride, const Q* b, int64_t b_stride, int64_t n,
               Q* y) {
  double x[kRealBlock], z[kRealBlock], v[kRealBlock];
  to_real(a, a_stride, n, plan.a.zero_point, plan.a_scale, x);
  to_real(b, b_stride, n, plan.b.zero_point, plan.b_scale, z);
  if (plan.tanh) {
    real_block(plan.op, x, z, n, 1.0, v);
    for (int64_t i = 0; i < n; ++i) v[i] = real_tanh(v[i]) * plan.inverse;
    round_block(v, n, plan.out, y);
    return;
  }
  real_block(plan.op, x, z, n, plan.inverse, v);
  if (!round_block(v, n, plan.out, y)) return;
  for (int64_t i = 0; i < n; ++i) {
    if (!is_near_step(v[i], plan.out) || !std::isfinite(v[i])) continue;
    y[i] = static_cast<Q>(binary_exact(plan.op, x[i], z[i], plan.out) + plan.out.zero_point);
  }
}

}  // namespace

BinaryPlan BinaryPlan::make(Binary op, Fused fused, ScaleZeroPoint a, ScaleZeroPoint b, ScaleZeroPoint out,
                            Grid grid) {
  // Of a sum that cancels, the terms are what its error is of.
  const double terms = op == Binary::squared_difference ? 0x1p36 * (static_cast<double>(a.scale) + b.scale) *
                                                              (static_cast<double>(a.scale) + b.scale)
                                                        : 0x1p17 * (static_cast<double>(a.scale) + b.scale);
  const bool cancels =
      op == Binary::add || op == Binary::sub || op == Binary::squared_difference || op == Binary::floor_mod;
  BinaryPlan plan{op, a, b, Rounder::make(out, grid, cancels ? std::max(0x1p17, terms / out.scale) : 0x1p17)};
  plan.a_scale = a.scale;
  plan.b_scale = b.scale;
  plan.inverse = 1.0 / static_cast<double>(out.scale);
  plan.tanh = fused == Fused::tanh;
  if (!plan.tanh) {
    use_short_ratios(&plan);
    use_line(grid, &plan);
  }
  limit(fused, &plan.out);
  return plan;
}

template <class Q>
void binary_quantized(const BinaryPlan& plan, const Broadcast& map, const Q* a, const Q* b, Q* y,
                      int64_t begin, int64_t end) {
  for_each_run(map, begin, end, [&](const Run& run) {
    for (int64_t i = 0; i < run.n; i += kLine) {
      const int64_t n = std::min(kLine, run.n - i);
      const Q *left = a + run.a + i * run.a_stride, *right = b + run.b + i * run.b_stride;
      Q* const to = y + run.out + i;
      if (plan.line.kind != BinaryLine::none && run_line(plan.line, plan.out, run, left, right, n, to))
        continue;
      for (int64_t k = 0; k < n; k += kRealBlock) {
        run_block(plan, left + k * run.a_stride, run.a_stride, right + k * run.b_stride, run.b_stride,
                  std::min(kRealBlock, n - k), to + k);
      }
    }
  });
}

template <class Q>
void compare_quantized(Compare op, const Broadcast& map, const Q* a, ScaleZeroPoint a_q, const Q* b,
                       ScaleZeroPoint b_q, uint8_t* y, int64_t begin, int64_t end) {
  Broadcast line;
  line.rank = 1;
  line.dims[0] = kRealBlock;
  line.a_strides[0] = line.b_strides[0] = 1;
  for_each_run(map, begin, end, [&](const Run& run) {
    for (int64_t i = 0; i < run.n; i += kRealBlock) {
      const int64_t n = std::min(kRealBlock, run.n - i);
      double x[kRealBlock], z[kRealBlock];
      to_real(a + run.a + i * run.a_stride, run.a_stride, n, a_q.zero_point, a_q.scale, x);
      to_real(b + run.b + i * run.b_stride, run.b_stride, n, b_q.zero_point, b_q.scale, z);
      compare<double>(op, line, x, z, y + run.out + i, 0, n);
    }
  });
}

#define PYQUANT_BINARY(Q)                                                                              \
  template void binary_quantized(const BinaryPlan&, const Broadcast&, const Q*, const Q*, Q*, int64_t, \
                                 int64_t);                                                             \
  template void compare_quantized(Compare, const Broadcast&, const Q*, ScaleZeroPoint, const Q*,       \
                                  ScaleZeroPoint, uint8_t*, int64_t, int64_t);
PYQUANT_BINARY(int8_t)
PYQUANT_BINARY(uint8_t)
PYQUANT_BINARY(int16_t)
#undef PYQUANT_BINARY

}  // namespace pyquant::kernels
