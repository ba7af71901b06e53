// SPDX-License-Identifier: Apache-2.0
// choose_qparams, and the integers of a bias.
#include "pyquant/qparams.h"

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

std::tuple<Tensor, Tensor> choose_qparams(const Tensor& lo_, const Tensor& hi_, int64_t qmin, int64_t qmax,
                                          bool symmetric) {
  const char* op = "choose_qparams";
  check_dtype(op, "lo", lo_, ScalarType::Float);
  check_dtype(op, "hi", hi_, ScalarType::Float);
  check_search_grid(op, qmin, qmax, symmetric);
  PYQUANT_CHECK(shape_text(lo_) == shape_text(hi_), op, ": lo has shape ", shape_text(lo_), ", hi has shape ",
                shape_text(hi_), "; expected one shape");
  const Tensor lo = dense(lo_), hi = dense(hi_);
  Tensor scale = torch::stable::new_empty(lo, lo.sizes());
  Tensor zero_point = torch::stable::new_empty(lo, lo.sizes(), ScalarType::Int);
  const Grid grid{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
  const float *low = in<float>(lo), *high = in<float>(hi);
  float* s = out<float>(scale);
  int32_t* z = out<int32_t>(zero_point);
  parallel(lo.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ScaleZeroPoint p = pyquant::choose_qparams(low[i], high[i], grid, symmetric);
      s[i] = p.scale;
      z[i] = p.zero_point;
    }
  });
  return {scale, zero_point};
}

// f(i, scale of i) for each bias; scale is () or has bias's shape.
template <class F>
void for_each_bias(const char* op, const Tensor& bias, const Tensor& scale_, int64_t bits, const F& f) {
  check_dtype(op, "bias", bias, ScalarType::Float);
  check_dtype(op, "scale", scale_, ScalarType::Float);
  PYQUANT_CHECK(bits == 32 || bits == 64, op, ": bits is ", bits,
                "; expected 32 (8-bit input) or 64 (16-bit input)");
  PYQUANT_CHECK(scale_.dim() == 0 || shape_text(scale_) == shape_text(bias), op, ": scale has shape ",
                shape_text(scale_), "; expected () or that of bias, ", shape_text(bias));
  const Tensor scale = dense(scale_);
  const float* s = in<float>(scale);
  const int64_t step = scale.dim() == 0 ? 0 : 1, n = bias.numel();
  for (int64_t i = 0; i < n; ++i) {
    PYQUANT_CHECK(s[i * step] > 0.0f && s[i * step] <= 3.40282347e+38f, op, ": scale number ", i * step,
                  " is ", s[i * step], "; every scale must be finite and positive");
    f(i, s[i * step]);
  }
}

Tensor quantize_bias(const Tensor& bias_, const Tensor& scale, int64_t bits) {
  const Tensor bias = dense(bias_);
  Tensor q = torch::stable::new_empty(bias, bias.sizes(), ScalarType::Long);
  for_each_bias("quantize_bias", bias, scale, bits,
                [b = in<float>(bias), q = out<int64_t>(q), bits](int64_t i, float s) {
                  q[i] = pyquant::quantize_bias(b[i], s, static_cast<int>(bits));
                });
  return q;
}

Tensor fake_quantize_bias(const Tensor& bias_, const Tensor& scale, int64_t bits) {
  const Tensor bias = dense(bias_);
  Tensor y = torch::stable::new_empty(bias, bias.sizes(), ScalarType::Float);
  for_each_bias("fake_quantize_bias", bias, scale, bits,
                [b = in<float>(bias), y = out<float>(y), bits](int64_t i, float s) {
                  y[i] = pyquant::dequantize_bias(pyquant::quantize_bias(b[i], s, static_cast<int>(bits)), s);
                });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("choose_qparams(Tensor lo, Tensor hi, int qmin, int qmax, bool symmetric) -> (Tensor, Tensor)");
  m.def("quantize_bias(Tensor bias, Tensor scale, int bits) -> Tensor");
  m.def("fake_quantize_bias(Tensor bias, Tensor scale, int bits) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) {
  m.impl("choose_qparams", TORCH_BOX(&choose_qparams));
  m.impl("quantize_bias", TORCH_BOX(&quantize_bias));
  m.impl("fake_quantize_bias", TORCH_BOX(&fake_quantize_bias));
}

}  // namespace pyquant::torch_ops
