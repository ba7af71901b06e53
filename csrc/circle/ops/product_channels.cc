// SPDX-License-Identifier: Apache-2.0
// Sums of products in which every factor may have a scale of its own: the real numbers themselves are
// multiplied, and added up exactly where that decides.
#include <cstring>

#include "circle/ops/moves.h"
#include "circle/ops/product.h"
#include "kernels/real.h"

namespace pyquant::circle {
namespace {

constexpr int kBiasProducts = 4;

/// A bias as products that are exact.
class Bias {
 public:
  explicit Bias(const TensorArg& bias) : bias_(bias) {
    if (!bias || !bias.per_channel()) return;
    const auto axis = static_cast<size_t>(bias.tensor->quant->axis);
    inner_ = dense_strides(bias.shape)[axis];
    channels_ = bias.shape[axis];
  }

  int64_t add(const Frame& frame, int64_t n, kernels::Product* to) const {
    if (!bias_) return 0;
    const QParams& q = *bias_.tensor->quant;
    const auto c = static_cast<size_t>(n / inner_ % channels_);
    const auto scale = static_cast<double>(q.scale[c]);
    int64_t value = 0;
    int32_t narrow = 0;
    if (bias_.dtype() == DType::INT64) {
      std::memcpy(&value, frame.in(bias_) + 8 * n, 8);
    } else {
      std::memcpy(&narrow, frame.in(bias_) + 4 * n, 4);
      value = narrow;
    }
    add_halves(value, scale, to);
    add_halves(q.zero_point[c], -scale, to + 2);
    return kBiasProducts;
  }

 private:
  /// 64 bits are two numbers of 32.
  static void add_halves(int64_t value, double scale, kernels::Product* to) {
    to[0] = {static_cast<double>(value >> 32) * 0x1p32, scale};
    to[1] = {static_cast<double>(value & 0xffffffff), scale};
  }

  TensorArg bias_;
  int64_t inner_ = 1, channels_ = 1;
};

double sum_of(const kernels::Product* products, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += products[i].a * products[i].b;
  return sum;
}

}  // namespace

Step product_by_channel(Builder& b, const TensorArg& bias, int64_t depth, int64_t columns, Terms terms) {
  const kernels::Fused fused = fused_of(b);
  const RealOperand x(b, 0), w(b, 1);
  const ChannelResult y(b, 0, fused);
  const size_t scratch = b.scratch((depth + kBiasProducts) * static_cast<int64_t>(sizeof(kernels::Product)));
  Step step;
  step.multiply_adds = y.elements() * depth;
  step.run = [=, bias = Bias(bias), tanh = fused == kernels::Fused::tanh](const Frame& frame) -> Status {
    const double *const left = x.read(frame), *const right = w.read(frame);
    auto* const products = frame.scratch<kernels::Product>(scratch);
    const kernels::ChannelOutput to = y.at(frame);
    for (int64_t i = 0; i < y.elements(); ++i) {
      int64_t n = bias.add(frame, i % columns, products);
      terms(i, [&](int64_t a, int64_t c) { products[n++] = {left[a], right[c]}; });
      if (tanh) {
        to.round(i, kernels::real_tanh(sum_of(products, n)));
      } else {
        to.round_sum(i, products, n);
      }
    }
    y.finish(frame);
    return {};
  };
  return step;
}

}  // namespace pyquant::circle
