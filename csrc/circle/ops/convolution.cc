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

/// Where scales are others than one for each channel of the output.
Step conv_by_channel(Builder& b) {
  const kernels::Window window = window_of(b);
  const int64_t taps = window.filter[0] * window.filter[1], columns = b.in(1).shape[0];
  return product_by_channel(b, b.in(2), taps * window.channels, columns, [=](int64_t i, const AddTerm& add) {
    const kernels::Position position(window, i / columns);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t from = position.under(window, tap), to = (i % columns * taps + tap) * window.channels;
      for (int64_t c = 0; from >= 0 && c < window.channels; ++c) add(from + c, to + c);
    }
  });
}

Step depthwise_by_channel(Builder& b, int64_t multiplier) {
  const kernels::Window window = window_of(b);
  const int64_t taps = window.filter[0] * window.filter[1], columns = b.in(1).shape[3];
  return product_by_channel(b, b.in(2), taps, columns, [=](int64_t i, const AddTerm& add) {
    const kernels::Position position(window, i / columns);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t from = position.under(window, tap);
      if (from >= 0) add(from + i % columns / multiplier, tap * columns + i % columns);
    }
  });
}

}  // namespace

Result<Step> prepare_conv(Builder& b) {
  if (!Product::takes(b, b.in(2), 0)) return conv_by_channel(b);
  Product p(b, b.in(2), 0);
  const kernels::Window window = window_of(b);
  kernels::Linear& l = p.linear;
  l.columns = b.in(1).shape[0];
  l.depth = window.filter[0] * window.filter[1] * window.channels;
  l.rows = std::min(window.positions(), kPositions);
  l.w.row_step = l.depth;
  l.y.row_step = l.columns;
  if (!p.place(b)) return conv_by_channel(b);
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
  const kernels::Window window = window_of(b);
  const int64_t multiplier = b.option<int64_t>("depth_multiplier", 1);
  // 17 bits times 17 bits: sums of so many in double are exact.
  const bool fits = is_float(b.in(0).dtype()) || window.filter[0] * window.filter[1] <= 1 << 18;
  if (!fits || !Product::takes(b, b.in(2), 3)) return depthwise_by_channel(b, multiplier);
  Product p(b, b.in(2), 3, false);
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
