// SPDX-License-Identifier: Apache-2.0
// Operands of a file as the operands of a matrix product.
#include "circle/ops/product.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "circle/ops/operand.h"
#include "kernels/fused.h"
#include "pyquant/kernels.h"

namespace pyquant::circle {
namespace {

using kernels::Elements;
using kernels::Fused;

std::optional<Elements> elements_of(DType dtype) {
  switch (dtype) {
    case DType::INT4:
      return Elements::int4;
    case DType::UINT4:
      return Elements::uint4;
    case DType::INT8:
      return Elements::int8;
    case DType::UINT8:
      return Elements::uint8;
    case DType::INT16:
      return Elements::int16;
    case DType::FLOAT32:
      return Elements::float32;
    case DType::FLOAT16:
      return Elements::float16;
    case DType::BFLOAT16:
      return Elements::bfloat16;
    case DType::GGML_Q4_0:
      return Elements::q4_0;
    case DType::GGML_Q8_0:
      return Elements::q8_0;
    case DType::INT32:
      return Elements::int32;
    case DType::INT64:
      return Elements::int64;
    default:
      return std::nullopt;
  }
}

kernels::RowScales scales_of(const TensorArg& t) {
  const QParams& q = *t.tensor->quant;
  return {q.scale.data(), q.zero_point.data(), q.scale.size() > 1 ? 1 : 0};
}

void limit_integers(const TensorArg& y, Fused fused, kernels::Output* out) {
  const DTypeInfo& type = *info(y.dtype());
  out->scale = y.scale();
  out->zero = y.zero_point();
  const auto zero = static_cast<int32_t>(out->zero);
  kernels::Rounder ends{static_cast<double>(out->scale), zero, static_cast<int32_t>(type.lowest - out->zero),
                        static_cast<int32_t>(type.highest - out->zero), 0.0};
  kernels::limit(fused, &ends);
  out->least = ends.lo + out->zero;
  out->most = ends.hi + out->zero;
}

void limit_floats(Fused fused, kernels::Output* out) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  out->from = fused == Fused::relu || fused == Fused::relu6 ? 0.0f
              : fused == Fused::relu_n1_to_1                ? -1.0f
                                                            : -kInfinity;
  out->to = fused == Fused::relu6 ? 6.0f : fused == Fused::relu_n1_to_1 ? 1.0f : kInfinity;
}

}  // namespace

Result<Product> Product::of(Builder& b, const TensorArg& bias, size_t channel_axis) {
  Product p;
  p.x_ = b.in(0);
  p.w_ = b.in(1);
  p.bias_ = bias;
  p.y_ = b.out(0);
  const auto x = elements_of(p.x_.dtype()), w = elements_of(p.w_.dtype()), y = elements_of(p.y_.dtype());
  const auto fused = fused_of(b);
  if (!x || !w || !y || *x != *y) return b.unsupported("this combination of dtypes is not run");
  if (!fused) return b.unsupported("the fused activation SIGN_BIT is not run");
  kernels::Linear& l = p.linear;
  l.x = {*x, nullptr, 0};
  l.w = {*w, nullptr, 0};
  l.y.type = *y;
  l.y.tanh = *fused == Fused::tanh;
  if (is_quantized(p.w_.dtype())) {
    if (!p.w_.tensor->quant) return b.unsupported("weights without qparams are not run");
    if (p.w_.per_channel() && static_cast<size_t>(p.w_.tensor->quant->axis) != channel_axis) {
      return b.unsupported("scales along another dimension than the output's channels are not run");
    }
    l.w_scales = scales_of(p.w_);
  }
  if (bias) l.bias_type = *elements_of(bias.dtype());
  if (is_float(p.x_.dtype())) {
    limit_floats(*fused, &l.y);
    return p;
  }
  if (!p.x_.tensor->quant || !p.y_.tensor->quant || p.x_.per_channel() || p.y_.per_channel()) {
    return b.unsupported("data without one scale and zero point is not run");
  }
  if (bias && (!bias.tensor->quant || !is_index(bias.dtype()))) {
    return b.unsupported("a bias of integers with qparams is expected");
  }
  if (bias && bias.per_channel() && static_cast<int64_t>(bias.tensor->quant->scale.size()) != bias.elements) {
    return b.unsupported("a bias with one scale, or one for each element, is expected");
  }
  l.x_scale = p.x_.scale();
  l.x_zero = p.x_.zero_point();
  if (bias) l.bias_scales = scales_of(bias);
  limit_integers(p.y_, *fused, &l.y);
  // 4-bit results are made as bytes, since two threads may share a byte.
  if (*y == Elements::int4 || *y == Elements::uint4) {
    l.y.type = *y == Elements::int4 ? Elements::int8 : Elements::uint8;
    p.unpacked_ = b.scratch(p.y_.elements);
  }
  return p;
}

Status Product::place(Builder& b, int64_t copies) {
  if (!kernels::plan_linear(linear, &plan)) {
    return b.unsupported("rows of " + std::to_string(linear.depth) + " elements of these types are not run");
  }
  prepared_bytes_ = (plan.prepared_bytes + 63) / 64 * 64;
  scratch_ = b.scratch(prepared_bytes_ * copies);
  return {};
}

kernels::Linear Product::at(const Frame& frame) const {
  kernels::Linear l = linear;
  l.x.data = frame.in(x_);
  l.w.data = frame.in(w_);
  l.bias = bias_ ? frame.in(bias_) : nullptr;
  l.y.data =
      (y_.dtype() == DType::INT4 || y_.dtype() == DType::UINT4) ? frame.scratch(unpacked_) : frame.out(y_);
  return l;
}

void Product::pack(const Frame& frame) const {
  if (y_.dtype() == DType::INT4) {
    kernels::pack_int4(frame.scratch<int8_t>(unpacked_), y_.elements, frame.out(y_));
  } else if (y_.dtype() == DType::UINT4) {
    kernels::pack_int4(frame.scratch(unpacked_), y_.elements, frame.out(y_));
  }
}

}  // namespace pyquant::circle
