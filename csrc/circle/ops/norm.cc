// SPDX-License-Identifier: Apache-2.0
// RMS_NORM, INSTANCE_NORM, ROPE.
#include "kernels/norm.h"

#include <algorithm>
#include <array>

#include "circle/ops/operand.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

// gamma has the size of the last dimension, or 1.
void infer_rms_norm(Inference& it) {
  const Shape& x = it.shape(0);
  if (x.empty()) return it.fault("at least one dimension");
  const int64_t gamma = it.elements(1);
  if (gamma != x.back() && gamma != 1) {
    return it.fault("a gamma of " + std::to_string(x.back()) + " elements, or 1");
  }
  it.set(0, x, "as the input");
}

// x [batch, height, width, channels]; gamma and beta one for each channel, or 1.
void infer_instance_norm(Inference& it) {
  const Shape& x = it.shape(0);
  if (x.size() != 4) return it.fault("an input of rank 4");
  for (size_t i : {size_t{1}, size_t{2}}) {
    if (it.elements(i) != x[3] && it.elements(i) != 1) {
      return it.fault("gamma and beta of " + std::to_string(x[3]) + " elements, or 1");
    }
  }
  it.set(0, x, "as the input");
}

// x [batch, heads, tokens, size]; sin and cos broadcast to it.
void infer_rope(Inference& it) {
  const Shape& x = it.shape(0);
  if (x.size() != 4 || x[3] % 2 != 0) return it.fault("an input of rank 4 whose last dimension is even");
  for (size_t i : {size_t{1}, size_t{2}}) {
    const auto joined = broadcast(it.shape(i), x);
    if (!joined || *joined != x) return it.fault("tables that broadcast to the input");
  }
  it.set(0, x, "as the input");
}

void onert_rms_norm(const TargetCheck& it) {
  it.onert_dtypes();
  const Tensor* x = it.data();
  if (x && x->shape.size() != 3 && x->shape.size() != 4) {
    it.fault(Code::E_ONERT_RANK, "supports rank 3 or 4, the input has rank " +
                                     std::to_string(x->shape.size()) +
                                     "; RESHAPE it or use MUL, MEAN, RSQRT");
  }
}

void onert_rope(const TargetCheck& it) {
  it.onert_dtypes();
  const Tensor* table = it.input(1);
  const bool one_row = table && table->shape.size() == 4 && table->shape[2] == 1;
  if (!one_row || it.option<int64_t>("mode", 0) != 0) {
    it.fault(Code::E_ONERT_WRONG,
             "uses the first row of its tables for every position, and knows GPT_NEOX only; "
             "write the rotation with MUL, NEG, ADD");
  }
}

/// step(T{}) with the type of x.
template <class Make>
Step for_data(const InOperand& x, Make make) {
  return is_quantized(x.dtype()) ? with_integer(x.dtype(), make) : make(float{});
}

Result<Step> prepare_rms_norm(Builder& b) {
  const RealOperand gamma(b, 1);
  kernels::RmsNorm plan;
  plan.epsilon = static_cast<double>(b.option("epsilon", 0.0f));
  plan.size = b.in(0).shape.back();
  plan.one_gamma = gamma.elements() == 1;
  if (any_per_channel(b)) {
    return real_step(b, kernels::Fused::none, [=, x = RealOperand(b, 0)](const Frame& frame, double* y) {
      const int64_t rows = plan.size == 0 ? 0 : x.elements() / plan.size;
      kernels::rms_norm(plan, x.read(frame), gamma.read(frame), y, 0, rows);
    });
  }
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  if (is_quantized(x.dtype())) {
    plan.in = x.qparams();
    plan.out = kernels::Rounder::make(y.qparams(), y.grid());
  }
  const int64_t rows = plan.size == 0 ? 0 : x.elements() / plan.size;
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(plan.size, 1));
  return for_data(x, [&](auto type) {
    using T = decltype(type);
    return Step{[=](const Frame& frame) -> Status {
      const T* const from = x.read<T>(frame);
      const double* const weights = gamma.read(frame);
      T* const to = y.write<T>(frame);
      frame.threads().run(rows, grain, [&](int64_t begin, int64_t end, int) {
        kernels::rms_norm(plan, from, weights, to, begin, end);
      });
      y.finish(frame);
      return {};
    }};
  });
}

Result<Step> prepare_instance_norm(Builder& b) {
  const kernels::Fused fused = fused_of(b);
  const RealOperand gamma(b, 1), beta(b, 2);
  const Shape& shape = b.in(0).shape;
  kernels::InstanceNorm plan;
  plan.epsilon = static_cast<double>(b.option("epsilon", 0.0f));
  plan.positions = int64_t{shape[1]} * shape[2];
  plan.channels = shape[3];
  plan.one_gamma = gamma.elements() == 1;
  plan.one_beta = beta.elements() == 1;
  plan.fused = fused;
  const int64_t units = shape[0] * plan.units_per_batch();
  if (any_per_channel(b)) {
    if (fused != kernels::Fused::tanh) plan.fused = kernels::Fused::none;  // the others limit what is rounded
    return real_step(b, fused, [=, x = RealOperand(b, 0)](const Frame& frame, double* y) {
      kernels::instance_norm(plan, x.read(frame), gamma.read(frame), beta.read(frame), y, 0, units);
    });
  }
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  if (is_quantized(x.dtype())) {
    // Squares have 32 bits, their sums 63.
    if (plan.positions > INT32_MAX) return b.unsupported("this many positions");
    plan.in = x.qparams();
    plan.out = kernels::Rounder::make(y.qparams(), y.grid());
    kernels::limit(fused, &plan.out);
  }
  return for_data(x, [&](auto type) {
    using T = decltype(type);
    return Step{[=](const Frame& frame) -> Status {
      const T* const from = x.read<T>(frame);
      const double *const scale = gamma.read(frame), *const shift = beta.read(frame);
      T* const to = y.write<T>(frame);
      frame.threads().run(units, 1, [&](int64_t begin, int64_t end, int) {
        kernels::instance_norm(plan, from, scale, shift, to, begin, end);
      });
      y.finish(frame);
      return {};
    }};
  });
}

/// How far a table goes for one step of x in each dimension.
std::array<int64_t, 4> table_strides(const Shape& table) {
  std::array<int64_t, 4> strides{};
  int64_t stride = 1;
  for (size_t i = 0; i < table.size(); ++i) {
    const int64_t size = table[table.size() - 1 - i];
    strides[3 - i] = size == 1 ? 0 : stride;
    stride *= size;
  }
  return strides;
}

/// Calls use(row, first element of sin, of cos) for rows [begin, end) of x.
template <class Use>
void for_rows(const Shape& shape, const std::array<int64_t, 4>& sines, const std::array<int64_t, 4>& cosines,
              int64_t begin, int64_t end, Use use) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at[] = {row / shape[2] / shape[1], row / shape[2] % shape[1], row % shape[2]};
    int64_t of_sin = 0, of_cos = 0;
    for (size_t d = 0; d < 3; ++d) of_sin += at[d] * sines[d], of_cos += at[d] * cosines[d];
    use(row, of_sin, of_cos);
  }
}

Result<Step> prepare_rope(Builder& b) {
  const RealOperand sin(b, 1), cos(b, 2);
  const auto sines = table_strides(b.in(1).shape), cosines = table_strides(b.in(2).shape);
  kernels::Rope plan;
  plan.neighbours = b.option<int64_t>("mode", 0) == 1;
  plan.size = b.in(0).shape[3];
  plan.sin_step = sines[3];
  plan.cos_step = cosines[3];
  const Shape shape = b.in(0).shape;
  const int64_t rows = int64_t{shape[0]} * shape[1] * shape[2];
  const int64_t grain = std::max<int64_t>(1, 2048 / std::max<int64_t>(plan.size, 1));
  if (any_per_channel(b)) {
    return Step{[=, x = RealOperand(b, 0), y = ChannelResult(b, 0)](const Frame& frame) -> Status {
      const double *const from = x.read(frame), *const s = sin.read(frame), *const c = cos.read(frame);
      const kernels::ChannelOutput to = y.at(frame);
      for_rows(shape, sines, cosines, 0, rows, [&](int64_t row, int64_t of_sin, int64_t of_cos) {
        kernels::rope_channels(plan, from + row * plan.size, s + of_sin, c + of_cos, to, row * plan.size);
      });
      y.finish(frame);
      return {};
    }};
  }
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  if (is_quantized(x.dtype())) {
    plan.in = x.qparams();
    plan.out = kernels::Rope::rounder(x.qparams(), y.qparams(), y.grid(), std::max(sin.most(), cos.most()));
  }
  return for_data(x, [&](auto type) {
    using T = decltype(type);
    return Step{[=](const Frame& frame) -> Status {
      const T* const from = x.read<T>(frame);
      const double *const s = sin.read(frame), *const c = cos.read(frame);
      T* const to = y.write<T>(frame);
      frame.threads().run(rows, grain, [&](int64_t begin, int64_t end, int) {
        for_rows(shape, sines, cosines, begin, end, [&](int64_t row, int64_t of_sin, int64_t of_cos) {
          kernels::rope_row(plan, from + row * plan.size, s + of_sin, c + of_cos, to + row * plan.size);
        });
      });
      y.finish(frame);
      return {};
    }};
  });
}

}  // namespace

std::vector<OpRow> norm_rows() {
  return {{"RMS_NORM", infer_rms_norm, prepare_rms_norm, onert_rms_norm},
          {"INSTANCE_NORM", infer_instance_norm, prepare_instance_norm},
          {"ROPE", infer_rope, prepare_rope, onert_rope}};
}

}  // namespace pyquant::circle
