// SPDX-License-Identifier: Apache-2.0
// The functions of one value. Each is a struct with its double and, where it can be made with fewer
// roundings, its float32; which loop runs is chosen once per call.
#include "kernels/unary.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/exact.h"
#include "kernels/real.h"
#include "kernels/reals.h"

namespace pyquant::kernels {
namespace {

// Functions with `narrow` need one float32 operation, or none that rounds.
struct Neg {
  PYQUANT_INLINE static double real(double x, double) { return -x; }
  PYQUANT_INLINE static float narrow(float x, float) { return -x; }
};
struct Abs {
  PYQUANT_INLINE static double real(double x, double) { return std::fabs(x); }
  PYQUANT_INLINE static float narrow(float x, float) { return std::fabs(x); }
};
struct Sqrt {
  PYQUANT_INLINE static double real(double x, double) { return std::sqrt(x); }
  PYQUANT_INLINE static float narrow(float x, float) { return std::sqrt(x); }
};
struct Rsqrt {
  PYQUANT_INLINE static double real(double x, double) { return 1.0 / std::sqrt(x); }
};
struct Exp {
  PYQUANT_INLINE static double real(double x, double) { return real_exp(x); }
};
struct Log {
  PYQUANT_INLINE static double real(double x, double) { return std::log(x); }
};
struct Square {
  PYQUANT_INLINE static double real(double x, double) { return x * x; }
  PYQUANT_INLINE static float narrow(float x, float) { return x * x; }
};
struct Floor {
  PYQUANT_INLINE static double real(double x, double) { return std::floor(x); }
  PYQUANT_INLINE static float narrow(float x, float) { return std::floor(x); }
};
struct Ceil {
  PYQUANT_INLINE static double real(double x, double) { return std::ceil(x); }
  PYQUANT_INLINE static float narrow(float x, float) { return std::ceil(x); }
};
struct Round {
  PYQUANT_INLINE static double real(double x, double) { return std::rint(x); }
  PYQUANT_INLINE static float narrow(float x, float) { return std::rint(x); }
};
struct Sin {
  PYQUANT_INLINE static double real(double x, double) { return std::sin(x); }
};
struct Cos {
  PYQUANT_INLINE static double real(double x, double) { return std::cos(x); }
};
struct Tanh {
  PYQUANT_INLINE static double real(double x, double) { return real_tanh(x); }
};
struct Logistic {
  PYQUANT_INLINE static double real(double x, double) { return real_logistic(x); }
};
struct Relu {  // NaN stays
  PYQUANT_INLINE static double real(double x, double) { return x < 0.0 ? 0.0 : x; }
  PYQUANT_INLINE static float narrow(float x, float) { return x < 0.0f ? 0.0f : x; }
};
struct Relu6 {
  PYQUANT_INLINE static double real(double x, double) {
    const double y = x < 0.0 ? 0.0 : x;
    return y > 6.0 ? 6.0 : y;
  }
  PYQUANT_INLINE static float narrow(float x, float) {
    const float y = x < 0.0f ? 0.0f : x;
    return y > 6.0f ? 6.0f : y;
  }
};
struct Gelu {
  // erfc keeps its relative precision where 1 + erf would cancel.
  PYQUANT_INLINE static double real(double x, double) {
    return x == -HUGE_VAL ? -0.0 : 0.5 * x * std::erfc(-x * 0x1.6a09e667f3bcdp-1);
  }
};
struct GeluTanh {
  PYQUANT_INLINE static double real(double x, double) { return real_gelu_tanh(x); }
};
struct Elu {
  PYQUANT_INLINE static double real(double x, double) {
    const double below = real_expm1(x < 0.0 ? x : 0.0);
    return x < 0.0 ? below : x;
  }
};
struct LeakyRelu {
  PYQUANT_INLINE static double real(double x, double alpha) { return x < 0.0 ? x * alpha : x; }
  PYQUANT_INLINE static float narrow(float x, float alpha) { return x < 0.0f ? x * alpha : x; }
};

/// Calls use(Function{}) with the struct of `kind`.
template <class Use>
auto with_function(Unary kind, Use use) {
  switch (kind) {
    case Unary::neg:
      return use(Neg{});
    case Unary::abs:
      return use(Abs{});
    case Unary::sqrt:
      return use(Sqrt{});
    case Unary::rsqrt:
      return use(Rsqrt{});
    case Unary::exp:
      return use(Exp{});
    case Unary::log:
      return use(Log{});
    case Unary::square:
      return use(Square{});
    case Unary::floor:
      return use(Floor{});
    case Unary::ceil:
      return use(Ceil{});
    case Unary::round:
      return use(Round{});
    case Unary::sin:
      return use(Sin{});
    case Unary::cos:
      return use(Cos{});
    case Unary::tanh:
      return use(Tanh{});
    case Unary::logistic:
      return use(Logistic{});
    case Unary::relu:
      return use(Relu{});
    case Unary::relu6:
      return use(Relu6{});
    case Unary::gelu:
      return use(Gelu{});
    case Unary::gelu_tanh:
      return use(GeluTanh{});
    case Unary::elu:
      return use(Elu{});
    case Unary::leaky_relu:
      break;
  }
  return use(LeakyRelu{});
}

template <class F, class = void>
struct IsNarrow : std::false_type {};
template <class F>
struct IsNarrow<F, std::void_t<decltype(F::narrow(0.0f, 0.0f))>> : std::true_type {};

template <class F>
struct FloatLoop {
  PYQUANT_INLINE static float one(float x, float alpha) {
    if constexpr (IsNarrow<F>::value) {
      return F::narrow(x, alpha);
    } else {
      return static_cast<float>(F::real(static_cast<double>(x), static_cast<double>(alpha)));
    }
  }
  static void scalar(const float* x, float* y, int64_t n, float alpha) {
    for (int64_t i = 0; i < n; ++i) y[i] = one(x[i], alpha);
  }
  PYQUANT_INLINE static void vector(const float* x, float* y, int64_t n, float alpha) {
    for (int64_t i = 0; i < n; ++i) y[i] = one(x[i], alpha);
  }
};

/// f of a block of doubles.
template <class F>
struct RealLoop {
  static void scalar(const double* x, double* y, int64_t n, double alpha) {
    for (int64_t i = 0; i < n; ++i) y[i] = F::real(x[i], alpha);
  }
  PYQUANT_INLINE static void vector(const double* __restrict x, double* __restrict y, int64_t n,
                                    double alpha) {
    for (int64_t i = 0; i < n; ++i) y[i] = F::real(x[i], alpha);
  }
};

/// Whether the real value whose double root is `root` reaches the step t >= 0: fma rounds x - t * t once, so
/// its sign is right.
bool sqrt_reaches(double x, double t) { return std::fma(-t, t, x) >= 0.0; }

/// 1 / sqrt(x) >= t, that is t * t * x <= 1, by the sign of an exact sum.
bool rsqrt_reaches(double x, double t) {
  const double high = t * t, low = std::fma(t, t, -high);
  return round_exact({{high, x}, {low, x}, {-1.0, 1.0}}, 0x1p-400, 1.0, -1, 1) <= 0;
}

/// Of a root that is positive and finite: the largest k with (k - 1/2) * scale <= root.
int64_t round_root(UnaryFunction f, double x, double v, double scale, int64_t hi) {
  const auto reaches = [&](double t) {
    return f.kind == Unary::sqrt ? sqrt_reaches(x, t) : rsqrt_reaches(x, t);
  };
  double k = std::floor(v + 0.5);
  if (k > static_cast<double>(hi) + 1.0) return hi;
  while (reaches((k + 0.5) * scale)) k += 1.0;
  while (k > 0.0 && !reaches((k - 0.5) * scale)) k -= 1.0;
  return k < static_cast<double>(hi) ? static_cast<int64_t>(k) : hi;
}

/// round_half_away(f(x) / scale) where the double lies near a step.
int64_t round_near_tie(UnaryFunction f, double x, double y, double scale, int64_t lo, int64_t hi) {
  switch (f.kind) {
    case Unary::sqrt:
    case Unary::rsqrt:
      return round_root(f, x, y / scale, scale, hi);
    case Unary::square:
      return round_exact({{x, x}}, scale, 1.0, lo, hi);
    case Unary::leaky_relu:
      return round_exact({{x, x < 0.0 ? static_cast<double>(f.alpha) : 1.0}}, scale, 1.0, lo, hi);
    default:  // y itself is exact, or the best there is
      return round_exact({{y, 1.0}}, scale, 1.0, lo, hi);
  }
}

int32_t round_value(UnaryFunction f, double x, double y, ScaleZeroPoint out, Grid grid) {
  const int64_t lo = grid.qmin - out.zero_point, hi = grid.qmax - out.zero_point;
  const double scale = out.scale, v = y / scale;
  int64_t k;
  if (!(std::fabs(v) < 0x1p40) || !near_tie(v, std::fabs(v))) {
    k = static_cast<int64_t>(nearest(v, static_cast<double>(lo), static_cast<double>(hi)));
  } else {
    k = round_near_tie(f, x, y, scale, lo, hi);
    k = k < lo ? lo : k;
  }
  return static_cast<int32_t>(k) + out.zero_point;
}

double real_of(int32_t q, ScaleZeroPoint p) { return static_cast<double>(q - p.zero_point) * p.scale; }

}  // namespace

double unary_real(UnaryFunction f, double x) {
  return with_function(f.kind, [&](auto function) { return decltype(function)::real(x, f.alpha); });
}

void unary(UnaryFunction f, const float* x, float* y, int64_t n) {
  with_function(f.kind, [&](auto function) { dispatch<FloatLoop<decltype(function)>>(x, y, n, f.alpha); });
}

template <class T>
void unary_integers(Unary kind, const T* x, T* y, int64_t n) {
  using U = std::make_unsigned_t<T>;
  for (int64_t i = 0; i < n; ++i) {
    const U u = static_cast<U>(x[i]);
    const U minus = U{0} - u;
    y[i] = static_cast<T>(kind == Unary::square ? u * u : kind == Unary::abs && x[i] >= 0 ? u : minus);
  }
}

int32_t unary_quantized(UnaryFunction f, int32_t q, ScaleZeroPoint in, ScaleZeroPoint out, Grid grid) {
  const double x = real_of(q, in);
  return round_value(f, x, unary_real(f, x), out, grid);
}

template <class Q>
void unary_quantized(UnaryFunction f, const Q* q, ScaleZeroPoint in, Q* y, ScaleZeroPoint out, Grid grid,
                     int64_t n) {
  const Rounder to = Rounder::make(out, grid);
  double x[kRealBlock], values[kRealBlock], v[kRealBlock];
  with_function(f.kind, [&](auto function) {
    for (int64_t begin = 0; begin < n; begin += kRealBlock) {
      const int64_t count = n - begin < kRealBlock ? n - begin : kRealBlock;
      to_real(q + begin, 1, count, in.zero_point, in.scale, x);
      dispatch<RealLoop<decltype(function)>>(static_cast<const double*>(x), static_cast<double*>(values),
                                             count, static_cast<double>(f.alpha));
      for (int64_t i = 0; i < count; ++i) v[i] = values[i] / to.scale;
      if (!round_block(v, count, to, y + begin)) continue;
      for (int64_t i = 0; i < count; ++i) {
        if (is_near_step(v[i], to)) y[begin + i] = static_cast<Q>(round_value(f, x[i], values[i], out, grid));
      }
    }
  });
}

template void unary_integers(Unary, const int32_t*, int32_t*, int64_t);
template void unary_integers(Unary, const int64_t*, int64_t*, int64_t);
template void unary_quantized(UnaryFunction, const int8_t*, ScaleZeroPoint, int8_t*, ScaleZeroPoint, Grid,
                              int64_t);
template void unary_quantized(UnaryFunction, const uint8_t*, ScaleZeroPoint, uint8_t*, ScaleZeroPoint, Grid,
                              int64_t);
template void unary_quantized(UnaryFunction, const int16_t*, ScaleZeroPoint, int16_t*, ScaleZeroPoint, Grid,
                              int64_t);

}  // namespace pyquant::kernels
