// SPDX-License-Identifier: Apache-2.0
// Operators with weights: FULLY_CONNECTED, CONV_2D, DEPTHWISE_CONV_2D, BATCH_MATMUL. How each is run is in a
// file of its own (fully_connected.cc, convolution.cc, batch_matmul.cc).
#include <algorithm>

#include "circle/ops/product.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

// Weights are [out, in]; the leading dimensions of x are kept, or folded into one.
void infer_fully_connected(Inference& it) {
  const Shape &x = it.shape(0), &w = it.shape(1), &y = it.declared(0);
  if (w.size() != 2 || x.empty()) return it.fault("weights [out, in], and at least one dimension");
  const int64_t columns = std::max(w[1], 1), count = it.elements(0);
  const auto text = [](int32_t n) { return std::to_string(n); };
  if (count % columns != 0 || (w[1] == 0 && count != 0)) {
    return it.fault("x [..., " + text(w[1]) + "] and output [..., " + text(w[0]) + "]");
  }
  if (it.input(2) && it.elements(2) != w[0]) return it.fault("a bias of " + text(w[0]) + " elements");
  Shape kept = x;
  kept.back() = w[0];
  if (it.option("keep_num_dims", false)) {
    if (x.back() != w[1]) return it.fault("x [..., " + text(w[1]) + "] (keep_num_dims)");
    return it.set(0, kept, "of x's rank (keep_num_dims)");
  }
  // Without keep_num_dims, files give rank 2 or the rank of x; both mean the same elements.
  if (y.size() == x.size() && x.back() == w[1]) return it.set(0, kept, "x [..., in] times weights [out, in]");
  if (count / columns > INT32_MAX) return it.fault("a number of rows that fits 32 bits");
  it.set(0, {static_cast<int32_t>(count / columns), w[0]}, "x [..., in] times weights [out, in]");
}

void infer_batch_matmul(Inference& it) {
  Shape a = it.shape(0), b = it.shape(1);
  if (a.size() < 2 || b.size() < 2) return it.fault("at least two dimensions");
  if (it.option("adjoint_lhs", false)) std::swap(a.back(), a[a.size() - 2]);
  if (it.option("adjoint_rhs", false)) std::swap(b.back(), b[b.size() - 2]);
  if (a.back() != b[b.size() - 2]) return it.fault("inner dimensions that agree");
  auto y = broadcast(Shape(a.begin(), a.end() - 2), Shape(b.begin(), b.end() - 2));
  if (!y) return it.fault("shapes that broadcast");
  y->insert(y->end(), {a[a.size() - 2], b.back()});
  it.set(0, *y, "the product");
}

// One spatial dimension of a convolution's output; nothing where the filter does not fit.
std::optional<int32_t> spatial(int64_t size, int64_t filter, int64_t stride, int64_t dilation, bool same) {
  if (stride < 1 || dilation < 1 || filter < 1) return std::nullopt;
  const int64_t reach = (filter - 1) * dilation + 1;
  if (same) return static_cast<int32_t>((size + stride - 1) / stride);
  if (size < reach) return std::nullopt;
  return static_cast<int32_t>((size - reach) / stride + 1);
}

void infer_convolution(Inference& it, bool depthwise) {
  const Shape &x = it.shape(0), &w = it.shape(1);
  if (x.size() != 4 || w.size() != 4)
    return it.fault("x [batch, height, width, channels] and weights of rank 4");
  const int64_t multiplier = it.option<int64_t>("depth_multiplier", 1);
  const bool fits = depthwise ? w[0] == 1 && w[3] == x[3] * multiplier : w[3] == x[3];
  if (!fits) {
    return it.fault(depthwise ? "weights [1, height, width, channels * depth_multiplier]"
                              : "weights [out, height, width, channels]");
  }
  const int32_t channels = depthwise ? w[3] : w[0];
  if (it.input(2) && it.elements(2) != channels) {
    return it.fault("a bias of " + std::to_string(channels) + " elements");
  }
  const bool same = it.option<int64_t>("padding", 0) == 0;
  const auto height = spatial(x[1], w[1], it.option<int64_t>("stride_h", 1),
                              it.option<int64_t>("dilation_h_factor", 1), same);
  const auto width = spatial(x[2], w[2], it.option<int64_t>("stride_w", 1),
                             it.option<int64_t>("dilation_w_factor", 1), same);
  if (!height || !width) return it.fault("a filter that fits into the input");
  it.set(0, {x[0], *height, *width, channels}, "what the filter gives");
}

void infer_conv(Inference& it) { infer_convolution(it, false); }
void infer_depthwise(Inference& it) { infer_convolution(it, true); }

bool per_channel(const Tensor& t) { return t.quant && t.quant->scale.size() > 1; }

void onert_fully_connected(const TargetCheck& it) {
  const Tensor *x = it.data(), *w = it.input(1), *y = it.output(0);
  if (!x || !w || !y) return;
  const std::string weights = it.input_text(1);
  if (x->dtype == DType::FLOAT32) {
    if (w->dtype != DType::FLOAT32 && w->dtype != DType::INT8 && !is_ggml(w->dtype)) {
      return it.fault(Code::E_ONERT_WRONG,
                      weights +
                          ": read as other bytes than they are; with float32 data use float32, "
                          "per-tensor int8, ggml_q4_0 or ggml_q8_0 weights");
    }
    if (is_ggml(w->dtype)) {
      if (it.inputs() > 2 && it.op().inputs[2] != -1)
        it.fault(Code::E_ONERT_BIAS, "supports no bias with GGML weights; ADD it");
      if (x->shape.size() != 2)
        it.fault(Code::E_ONERT_RANK, "aborts on GGML weights unless the data has rank 2; RESHAPE it");
      if (!w->shape.empty() && w->shape.back() % 32 != 0)
        it.fault(Code::E_ONERT_RANK, weights + ": rows must be blocks of 32");
    }
  } else if (x->dtype == DType::UINT8) {
    if (w->dtype != DType::UINT8) {
      return it.fault(Code::E_ONERT_WRONG, weights + ": with uint8 data only uint8 weights are right");
    }
  } else {
    return it.fault(Code::E_ONERT_DTYPE, it.input_text(0) + ": not supported; expected float32 or uint8");
  }
  if (per_channel(*w)) {
    it.fault(Code::E_ONERT_WRONG,
             weights + ": quantized per channel, but the first scale is used for all; use per tensor");
  }
  if (y->shape.size() != 2) {
    it.fault(Code::E_ONERT_RANK,
             "gives a result of rank 2 for any keep_num_dims; write rank 2 and RESHAPE after it");
  }
}

void onert_batch_matmul(const TargetCheck& it) {
  it.onert_dtypes();
  const Tensor *rhs = it.input(1), *out = it.output(0);
  if (rhs && rhs->dtype != DType::FLOAT32)
    it.fault(Code::E_ONERT_DTYPE, it.input_text(1) + ": expected float32");
  if (it.is_constant(0)) {
    it.fault(Code::E_ONERT_CONSTANT,
             "the left operand is a constant; swap the operands into FULLY_CONNECTED");
  }
  if (out && out->shape.size() > 4) {
    it.fault(Code::E_ONERT_RANK,
             "supports rank 2 to 4, the output has rank " + std::to_string(out->shape.size()));
  }
}

void onert_convolution(const TargetCheck& it) {
  it.onert_dtypes();
  if (it.inputs() > 2 && it.op().inputs[2] == -1) it.fault(Code::E_ONERT_BIAS, "wants a bias; pass zeros");
}

}  // namespace

std::vector<OpRow> linear_rows() {
  OpRow depthwise{"DEPTHWISE_CONV_2D", infer_depthwise, prepare_depthwise, onert_convolution};
  depthwise.channel_axis = 3;
  return {{"FULLY_CONNECTED", infer_fully_connected, prepare_fully_connected, onert_fully_connected},
          {"CONV_2D", infer_conv, prepare_conv, onert_convolution},
          depthwise,
          {"BATCH_MATMUL", infer_batch_matmul, prepare_batch_matmul, onert_batch_matmul}};
}

}  // namespace pyquant::circle
