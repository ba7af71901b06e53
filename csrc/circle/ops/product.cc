// SPDX-License-Identifier: Apache-2.0
// Operands of a file as the operands of a matrix product.
#include "circle/ops/product.h"

#include <algorithm>
#include <limits>

#include "kernels/fused.h"
#include "pyquant/kernels.h"

namespace pyquant::circle {
namespace {

using kernels::Elements;
using kernels::Fused;

/// Of a dtype that the checker lets through.
Elements elements_of(DType dtype) {
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
    default:
      return Elements::int64;
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

// Whether scales lie otherwise than one for each row of w.
bool crosses_rows(const TensorArg& w, size_t channel_axis) {
  return w.per_channel() && static_cast<size_t>(w.tensor->quant->axis) != channel_axis;
}

}  // namespace

bool Product::takes(const Builder& b, const TensorArg& bias, size_t channel_axis) {
  if (is_float(b.in(0).dtype())) return true;
  if (bias) {
    const QParams& q = *bias.tensor->quant;
    if (q.scale.size() > 1 && static_cast<int64_t>(q.scale.size()) != bias.elements) return false;
    if (std::any_of(q.zero_point.begin(), q.zero_point.end(), [](int64_t zero) { return zero != 0; }))
      return false;
  }
  return !any_per_channel(b) && !crosses_rows(b.in(1), channel_axis);
}

Product::Product(Builder& b, const TensorArg& bias, size_t channel_axis, bool by_rows)
    : x_(b.in(0)), w_(b.in(1)), bias_(bias), y_(b.out(0)) {
  const Fused fused = fused_of(b);
  kernels::Linear& l = linear;
  l.x = {elements_of(x_.dtype()), nullptr, 0};
  l.w = {elements_of(w_.dtype()), nullptr, 0};
  l.y.type = elements_of(y_.dtype());
  l.y.tanh = fused == Fused::tanh;
  const bool whole_blocks = by_rows && w_.shape.back() % kernels::kBlockLength == 0;
  if (is_float(x_.dtype()) && (crosses_rows(w_, channel_axis) || (is_ggml(w_.dtype()) && !whole_blocks))) {
    l.w.type = Elements::float32;
    dense_.emplace(b, 1);
    dense_at_ = b.scratch(w_.elements * static_cast<int64_t>(sizeof(float)));
  } else if (is_quantized(w_.dtype())) {
    l.w_scales = scales_of(w_);
  }
  if (bias) l.bias_type = elements_of(bias.dtype());
  if (is_float(x_.dtype())) {
    limit_floats(fused, &l.y);
    return;
  }
  l.x_scale = x_.scale();
  l.x_zero = x_.zero_point();
  if (bias) l.bias_scales = scales_of(bias);
  limit_integers(y_, fused, &l.y);
  // 4-bit results are made as bytes, since two threads may share a byte.
  if (l.y.type == Elements::int4 || l.y.type == Elements::uint4) {
    l.y.type = l.y.type == Elements::int4 ? Elements::int8 : Elements::uint8;
    unpacked_ = b.scratch(y_.elements);
  }
}

bool Product::place(Builder& b, int64_t copies) {
  if (!kernels::plan_linear(linear, &plan)) return false;
  prepared_bytes_ = (plan.prepared_bytes + 63) / 64 * 64;
  scratch_ = b.scratch(prepared_bytes_ * copies);
  return true;
}

const void* Product::weights(const Frame& frame) const {
  if (!dense_) return frame.in(w_);
  const double* const values = dense_->read(frame);
  auto* const to = frame.scratch<float>(dense_at_);
  for (int64_t i = 0; i < w_.elements; ++i) to[i] = static_cast<float>(values[i]);
  return to;
}

kernels::Linear Product::at(const Frame& frame) const {
  kernels::Linear l = linear;
  l.x.data = frame.in(x_);
  l.w.data = weights(frame);
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
