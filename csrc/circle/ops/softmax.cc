// SPDX-License-Identifier: Apache-2.0
// SOFTMAX and LOG_SOFTMAX over the last dimension.
#include "kernels/softmax.h"

#include <algorithm>
#include <cmath>

#include "circle/ops/operand.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

void infer(Inference& it) {
  if (it.shape(0).empty()) return it.fault("at least one dimension");
  infer_same(it);
}

Result<Step> prepare(Builder& b) {
  kernels::Softmax plan;
  plan.log = std::string_view(b.op().op->name) == "LOG_SOFTMAX";
  plan.beta = plan.log ? 1.0f : b.option("beta", 1.0f);
  // The exponents are at most 0 then.
  if (!(plan.beta >= 0.0f) || std::isinf(plan.beta))
    return b.unsupported("a beta below 0, or that is no number");
  plan.size = b.in(0).shape.back();
  if (any_per_channel(b)) {
    return real_step(b, kernels::Fused::none, [plan, x = RealOperand(b, 0)](const Frame& frame, double* y) {
      kernels::softmax(plan, x.read(frame), y, 0, plan.size == 0 ? 0 : x.elements() / plan.size);
    });
  }
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  plan.in_scale = x.qparams().scale;
  const bool quantized = is_quantized(x.dtype());
  if (quantized) {
    plan.out = kernels::Rounder::make(y.qparams(), y.grid());
    plan.tabulate();
  }
  const int64_t rows = plan.size == 0 ? 0 : x.elements() / plan.size;
  const int64_t grain = std::max<int64_t>(1, 1024 / std::max<int64_t>(plan.size, 1));
  const auto step = [&](auto type) {
    using T = decltype(type);
    return Step{[x, y, plan, rows, grain](const Frame& frame) -> Status {
      const T* const from = x.read<T>(frame);
      T* const to = y.write<T>(frame);
      frame.threads().run(rows, grain, [&](int64_t begin, int64_t end, int) {
        kernels::softmax(plan, from, to, begin, end);
      });
      y.finish(frame);
      return {};
    }};
  };
  return quantized ? with_integer(x.dtype(), step) : step(float{});
}

}  // namespace

std::vector<OpRow> softmax_rows() {
  OpRow softmax{"SOFTMAX", infer, prepare};
  softmax.fixed = [](bool narrow) { return FixedGrid{narrow ? 1.0f / 255.0f : 1.0f / 32767.0f, 0}; };
  return {softmax, {"LOG_SOFTMAX", infer, prepare}};
}

}  // namespace pyquant::circle
