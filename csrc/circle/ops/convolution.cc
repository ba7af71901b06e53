// SPDX-License-Identifier: Apache-2.0
// How CONV_2D and DEPTHWISE_CONV_2D are run: patches of x times rows of the weights, or channel by channel.
#include "kernels/convolution.h"

#include "circle/ops/product.h"

namespace pyquant::circle {
namespace {

/// Positions whose patches are laid out at a time.
constexpr int64_t kPositions = 1024;

kernels::Window window_of(const Builder& b) {
  const std::vector<int32_t>&x = b.in(0).shape, &w = b.in(1).shape, &y = b.out(0).shape;
  kernels::Window window{};
  window.batch = x[0];
  window.channels = x[3];
  const bool same = b.option<int64_t>("padding", 0) == 0;
  const char* const strides[] = {"stride_h", "stride_w"};
  const char* const dilations[] = {"dilation_h_factor", "dilation_w_factor"};
  for (size_t d = 0; d < 2; ++d) {
    window.size[d] = x[d + 1];
    window.output[d] = y[d + 1];
    window.filter[d] = w[d + 1];
    window.stride[d] = b.option<int64_t>(strides[d], 1);
    window.dilation[d] = b.option<int64_t>(dilations[d], 1);
    const int64_t reach = (window.filter[d] - 1) * window.dilation[d] + 1;
    const int64_t outside = (window.output[d] - 1) * window.stride[d] + reach - window.size[d];
    window.before[d] = same ? std::max<int64_t>(outside, 0) / 2 : 0;
  }
  return window;
}

}  // namespace

Result<Step> prepare_conv(Builder& b) {
  auto made = Product::of(b, b.in(2), 0);
  if (!made.ok()) return made.fault();
  Product p = std::move(made).value();
  const kernels::Window window = window_of(b);
  kernels::Linear& l = p.linear;
  l.columns = b.in(1).shape[0];
  l.depth = window.filter[0] * window.filter[1] * window.channels;
  l.rows = std::min(window.positions(), kPositions);
  l.w.row_step = l.depth;
  l.y.row_step = l.columns;
  PYQUANT_TRY(p.place(b));
  Step step;
  step.multiply_adds = b.out(0).elements * l.depth;
  step.run = [p, window](const Frame& frame) -> Status {
    kernels::Linear linear = p.at(frame);
    kernels::LinearPlan plan = p.plan;
    void* const prepared = p.prepared(frame);
    for (int64_t first = 0; first < window.positions(); first += kPositions) {
      linear.rows = std::min(kPositions, window.positions() - first);
      linear.y.first = first * linear.columns;
      kernels::plan_linear(linear, &plan);
      frame.threads().run(linear.rows, p.row_grain(), [&](int64_t begin, int64_t end, int) {
        kernels::prepare_patches(linear, plan, window, first, begin, end, prepared);
      });
      frame.threads().run(plan.units, p.unit_grain(), [&](int64_t begin, int64_t end, int) {
        kernels::run_units(linear, plan, prepared, begin, end);
      });
    }
    p.pack(frame);
    return {};
  };
  return step;
}

Result<Step> prepare_depthwise(Builder& b) {
  if (is_ggml(b.in(1).dtype())) return b.unsupported("filters in blocks of ggml are not run");
  auto made = Product::of(b, b.in(2), 3);
  if (!made.ok()) return made.fault();
  Product p = std::move(made).value();
  const kernels::Window window = window_of(b);
  const int64_t multiplier = b.option<int64_t>("depth_multiplier", 1);
  // 17 bits times 17 bits: sums in double are exact.
  if (window.filter[0] * window.filter[1] > 1 << 18) return b.unsupported("a filter of this size is not run");
  p.linear.columns = p.linear.y.row_step = b.in(1).shape[3];
  Step step;
  step.multiply_adds = b.out(0).elements * window.filter[0] * window.filter[1];
  const int64_t grain = std::max<int64_t>(
      1, 4096 / std::max<int64_t>(1, window.filter[0] * window.filter[1] * p.linear.columns));
  step.run = [p, window, multiplier, grain](const Frame& frame) -> Status {
    const kernels::Linear linear = p.at(frame);
    frame.threads().run(window.positions(), grain, [&](int64_t begin, int64_t end, int) {
      kernels::depthwise(linear, window, multiplier, begin, end);
    });
    p.pack(frame);
    return {};
  };
  return step;
}

}  // namespace pyquant::circle
