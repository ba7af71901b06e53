// SPDX-License-Identifier: Apache-2.0
// fake_quantize, its gradient, quantize, dequantize.
#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

Tensor fake_quantize(const Tensor& x_, const Tensor& scale, const Tensor& zero_point, Axis axis,
                     int64_t group, int64_t qmin, int64_t qmax) {
  const Scales s("fake_quantize", x_, scale, zero_point, axis, group, qmin, qmax);
  const Tensor x = dense(x_);
  const Grid grid{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
  return with_float("fake_quantize", x, [&](auto type) {
    using T = decltype(type);
    Tensor y = empty_like(x, x.scalar_type());
    const T* from = in<T>(x);
    T* to = out<T>(y);
    parallel(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernels::fake_quantize(from, to, s.map, s.scale, s.zero_point, grid, begin, end);
    });
    return y;
  });
}

Tensor fake_quantize_backward(const Tensor& grad_, const Tensor& x_, const Tensor& scale,
                              const Tensor& zero_point, Axis axis, int64_t group, int64_t qmin,
                              int64_t qmax) {
  const char* op = "fake_quantize_backward";
  const Scales s(op, x_, scale, zero_point, axis, group, qmin, qmax);
  check_dtype(op, "grad", grad_, x_.scalar_type());
  PYQUANT_CHECK(grad_.numel() == x_.numel(), op, ": grad has shape ", shape_text(grad_),
                "; expected that of x, ", shape_text(x_));
  const Tensor grad = dense(grad_), x = dense(x_);
  const Grid grid{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
  return with_float(op, x, [&](auto type) {
    using T = decltype(type);
    Tensor dx = empty_like(x, x.scalar_type());
    const T *dy = in<T>(grad), *from = in<T>(x);
    T* to = out<T>(dx);
    parallel(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernels::fake_quantize_backward(dy, from, to, s.map, s.scale, s.zero_point, grid, begin, end);
    });
    return dx;
  });
}

Tensor quantize(const Tensor& x_, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t group,
                int64_t qmin, int64_t qmax, ScalarType dtype) {
  const Scales s("quantize", x_, scale, zero_point, axis, group, qmin, qmax);
  const Tensor x = dense(x_);
  const Grid grid{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
  return with_integer("quantize", "dtype", dtype, [&](auto integer) {
    using Q = decltype(integer);
    PYQUANT_CHECK(qmin >= std::numeric_limits<Q>::min() && qmax <= std::numeric_limits<Q>::max(),
                  "quantize: dtype ", dtype_text(dtype), " cannot hold the grid [", qmin, ", ", qmax, "]");
    return with_float("quantize", x, [&](auto type) {
      using T = decltype(type);
      Tensor q = empty_like(x, dtype);
      const T* from = in<T>(x);
      Q* to = out<Q>(q);
      parallel(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
        kernels::quantize(from, to, s.map, s.scale, s.zero_point, grid, begin, end);
      });
      return q;
    });
  });
}

Tensor dequantize(const Tensor& q_, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t group) {
  const Scales s("dequantize", q_, scale, zero_point, axis, group, -32768, 65535);
  const Tensor q = dense(q_);
  return with_integer("dequantize", "q", q.scalar_type(), [&](auto integer) {
    using Q = decltype(integer);
    Tensor x = empty_like(q, ScalarType::Float);
    const Q* from = in<Q>(q);
    float* to = out<float>(x);
    parallel(q.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernels::dequantize(from, to, s.map, s.scale, s.zero_point, begin, end);
    });
    return x;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def(
      "fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int group, int qmin, int qmax) -> "
      "Tensor");
  m.def(
      "fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int? axis, int group, "
      "int qmin, "
      "int qmax) -> Tensor");
  m.def(
      "quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int group, int qmin, int qmax, "
      "ScalarType dtype) "
      "-> Tensor");
  m.def("dequantize(Tensor q, Tensor scale, Tensor zero_point, int? axis, int group) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize));
  m.impl("fake_quantize_backward", TORCH_BOX(&fake_quantize_backward));
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("dequantize", TORCH_BOX(&dequantize));
}

}  // namespace pyquant::torch_ops
