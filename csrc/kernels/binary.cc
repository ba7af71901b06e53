// SPDX-License-Identifier: Apache-2.0
// Arithmetic, comparisons and logic of float32, plain integers and bool: one loop for each operation and each
// way that its operands walk (both, or one stands still).
#include "kernels/binary.h"

#include <cmath>
#include <type_traits>

#include "kernels/real.h"
#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

template <class Op, class T, class Out, int kA, int kB>
struct Loop {
  static void scalar(const T* a, const T* b, Out* y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = Op::of(a[i * kA], b[i * kB]);
  }
  PYQUANT_INLINE static void vector(const T* __restrict a, const T* __restrict b, Out* __restrict y,
                                    int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = Op::of(a[i * kA], b[i * kB]);
  }
};

template <class Op, class T, class Out>
void run_loop(const Run& run, const T* a, const T* b, Out* y) {
  a += run.a;
  b += run.b;
  y += run.out;
  if (run.a_stride == 0) return dispatch<Loop<Op, T, Out, 0, 1>>(a, b, y, run.n);
  if (run.b_stride == 0) return dispatch<Loop<Op, T, Out, 1, 0>>(a, b, y, run.n);
  dispatch<Loop<Op, T, Out, 1, 1>>(a, b, y, run.n);
}

template <class Op, class T, class Out>
void run_all(const Broadcast& map, const T* a, const T* b, Out* y, int64_t begin, int64_t end) {
  for_each_run(map, begin, end, [&](const Run& run) { run_loop<Op>(run, a, b, y); });
}

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Integers are added as unsigned, which wrap.
template <class T, class F>
PYQUANT_INLINE T wrapping(T a, T b, F f) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(f(static_cast<Unsigned<T>>(a), static_cast<Unsigned<T>>(b)));
  } else {
    return f(a, b);
  }
}

struct Add {
  template <class T>
  PYQUANT_INLINE static T of(T a, T b) {
    return wrapping(a, b, [](auto x, auto z) { return x + z; });
  }
};
struct Sub {
  template <class T>
  PYQUANT_INLINE static T of(T a, T b) {
    return wrapping(a, b, [](auto x, auto z) { return x - z; });
  }
};
struct Mul {
  template <class T>
  PYQUANT_INLINE static T of(T a, T b) {
    return wrapping(a, b, [](auto x, auto z) { return x * z; });
  }
};
struct Div {
  PYQUANT_INLINE static float of(float a, float b) { return a / b; }
  template <class T>
  PYQUANT_INLINE static T of(T a, T b) {
    return b == 0 ? 0 : b == -1 ? Sub::of<T>(0, a) : a / b;
  }
};
struct Maximum {
  template <class T>
  PYQUANT_INLINE static T of(T a, T b) {
    return a > b || a != a ? a : b;
  }
};
struct Minimum {
  template <class T>
  PYQUANT_INLINE static T of(T a, T b) {
    return a < b || a != a ? a : b;
  }
};
struct Pow {
  PYQUANT_INLINE static float of(float a, float b) {
    return static_cast<float>(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  template <class T>
  static T of(T a, T b) {
    if (b < 0) return a == 1 ? 1 : a == -1 ? (b % 2 == 0 ? 1 : -1) : 0;
    T power = 1;
    for (Unsigned<T> left = static_cast<Unsigned<T>>(b); left != 0; left >>= 1) {
      if (left & 1) power = Mul::of(power, a);
      a = Mul::of(a, a);
    }
    return power;
  }
};
struct SquaredDifference {
  PYQUANT_INLINE static float of(float a, float b) {
    const double d = static_cast<double>(a) - static_cast<double>(b);
    return static_cast<float>(d * d);
  }
  template <class T>
  PYQUANT_INLINE static T of(T a, T b) {
    return Mul::of(Sub::of(a, b), Sub::of(a, b));
  }
};
struct FloorDiv {
  static float of(float a, float b) {
    return static_cast<float>(floor_quotient(static_cast<double>(a), static_cast<double>(b)));
  }
  template <class T>
  static T of(T a, T b) {
    const T q = Div::of(a, b);
    return b != 0 && b != -1 && a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
  }
};
struct FloorMod {
  static float of(float a, float b) {
    const double r = std::fmod(static_cast<double>(a), static_cast<double>(b));
    return static_cast<float>(r != 0.0 && (r < 0.0) != (b < 0.0f) ? r + b : r);
  }
  template <class T>
  static T of(T a, T b) {
    if (b == 0 || b == -1) return 0;
    const T r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
  }
};

struct Equal {
  template <class T>
  PYQUANT_INLINE static uint8_t of(T a, T b) {
    return a == b;
  }
};
struct NotEqual {
  template <class T>
  PYQUANT_INLINE static uint8_t of(T a, T b) {
    return a != b;
  }
};
struct Greater {
  template <class T>
  PYQUANT_INLINE static uint8_t of(T a, T b) {
    return a > b;
  }
};
struct GreaterEqual {
  template <class T>
  PYQUANT_INLINE static uint8_t of(T a, T b) {
    return a >= b;
  }
};
struct BoolEqual {
  PYQUANT_INLINE static uint8_t of(uint8_t a, uint8_t b) { return (a != 0) == (b != 0); }
};
struct BoolNotEqual {
  PYQUANT_INLINE static uint8_t of(uint8_t a, uint8_t b) { return (a != 0) != (b != 0); }
};
struct And {
  PYQUANT_INLINE static uint8_t of(uint8_t a, uint8_t b) { return (a != 0) & (b != 0); }
};
struct Or {
  PYQUANT_INLINE static uint8_t of(uint8_t a, uint8_t b) { return (a | b) != 0; }
};

/// The same with the operands exchanged.
Broadcast exchanged(const Broadcast& map) {
  Broadcast out = map;
  for (int d = 0; d < map.rank; ++d) {
    out.a_strides[d] = map.b_strides[d];
    out.b_strides[d] = map.a_strides[d];
  }
  return out;
}

}  // namespace

template <class T>
void binary(Binary op, Fused fused, const Broadcast& map, const T* a, const T* b, T* y, int64_t begin,
            int64_t end) {
  switch (op) {
    case Binary::add:
      run_all<Add>(map, a, b, y, begin, end);
      break;
    case Binary::sub:
      run_all<Sub>(map, a, b, y, begin, end);
      break;
    case Binary::mul:
      run_all<Mul>(map, a, b, y, begin, end);
      break;
    case Binary::div:
      run_all<Div>(map, a, b, y, begin, end);
      break;
    case Binary::maximum:
      run_all<Maximum>(map, a, b, y, begin, end);
      break;
    case Binary::minimum:
      run_all<Minimum>(map, a, b, y, begin, end);
      break;
    case Binary::pow:
      run_all<Pow>(map, a, b, y, begin, end);
      break;
    case Binary::squared_difference:
      run_all<SquaredDifference>(map, a, b, y, begin, end);
      break;
    case Binary::floor_div:
      run_all<FloorDiv>(map, a, b, y, begin, end);
      break;
    case Binary::floor_mod:
      run_all<FloorMod>(map, a, b, y, begin, end);
      break;
  }
  activate(fused, y + begin, end - begin);
}

template <class T>
void compare(Compare op, const Broadcast& map, const T* a, const T* b, uint8_t* y, int64_t begin,
             int64_t end) {
  switch (op) {
    case Compare::equal:
      if constexpr (std::is_same_v<T, uint8_t>) return run_all<BoolEqual>(map, a, b, y, begin, end);
      return run_all<Equal>(map, a, b, y, begin, end);
    case Compare::not_equal:
      if constexpr (std::is_same_v<T, uint8_t>) return run_all<BoolNotEqual>(map, a, b, y, begin, end);
      return run_all<NotEqual>(map, a, b, y, begin, end);
    case Compare::greater:
      return run_all<Greater>(map, a, b, y, begin, end);
    case Compare::greater_equal:
      return run_all<GreaterEqual>(map, a, b, y, begin, end);
    case Compare::less:
      return run_all<Greater>(exchanged(map), b, a, y, begin, end);
    case Compare::less_equal:
      return run_all<GreaterEqual>(exchanged(map), b, a, y, begin, end);
  }
}

void logic(Logic op, const Broadcast& map, const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t begin,
           int64_t end) {
  if (op == Logic::logical_and) return run_all<And>(map, a, b, y, begin, end);
  run_all<Or>(map, a, b, y, begin, end);
}

void logical_not(const uint8_t* x, uint8_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] == 0;
}

#define PYQUANT_COMPARE(T) \
  template void compare(Compare, const Broadcast&, const T*, const T*, uint8_t*, int64_t, int64_t);
#define PYQUANT_BINARY(T) \
  template void binary(Binary, Fused, const Broadcast&, const T*, const T*, T*, int64_t, int64_t);
PYQUANT_BINARY(float)
PYQUANT_BINARY(int32_t)
PYQUANT_BINARY(int64_t)
PYQUANT_COMPARE(float)
PYQUANT_COMPARE(double)
PYQUANT_COMPARE(int32_t)
PYQUANT_COMPARE(int64_t)
PYQUANT_COMPARE(uint8_t)
#undef PYQUANT_COMPARE
#undef PYQUANT_BINARY

}  // namespace pyquant::kernels
