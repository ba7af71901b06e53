// SPDX-License-Identifier: Apache-2.0
// A move is planned: which inputs are data, which grids meet.
#include "circle/ops/moves_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "circle/ops/operand.h"
#include "kernels/exact.h"
#include "kernels/real.h"

namespace pyquant::circle {
namespace {

bool has_grid(const TensorArg& t) { return t.tensor->quant && !t.tensor->quant->scale.empty(); }

// A grid by channel needs one for each channel of the concrete shape.
bool grid_fits(const TensorArg& t) {
  if (!has_grid(t) || !t.per_channel()) return true;
  const auto axis = static_cast<size_t>(t.tensor->quant->axis);
  return axis < t.rank() && static_cast<size_t>(t.shape[axis]) == t.tensor->quant->scale.size();
}

void add_source(MovePlan& plan, size_t i) {
  const TensorArg& x = plan.in[i];
  MovePlan::Source& source = plan.sources[i];
  source.strides = dense_strides(x.shape);
  source.number_strides.assign(x.rank(), 0);
  source.first_grid = plan.grids.size();
  if (!has_grid(x)) {
    plan.grids.push_back({1.0f, 0, true});
    return;
  }
  const QParams& q = *x.tensor->quant;
  if (x.per_channel()) source.number_strides[static_cast<size_t>(q.axis)] = 1;
  for (size_t c = 0; c < q.scale.size(); ++c) plan.grids.push_back({q.scale[c], q.zero_point[c], false});
}

bool same(const ElementGrid& a, const ElementGrid& b) {
  return a.keep == b.keep && (a.keep || (a.scale == b.scale && a.zero_point == b.zero_point));
}

}  // namespace

bool same_bytes(const TensorArg& from, const TensorArg& to) {
  if (from.dtype() != to.dtype()) return false;
  if (!has_grid(from) || !has_grid(to)) return true;
  const QParams &a = *from.tensor->quant, &b = *to.tensor->quant;
  if (a.scale != b.scale || a.zero_point != b.zero_point) return false;
  if (!from.per_channel()) return true;
  // The channel of an element: how far it is along the axis.
  return grid_fits(from) && grid_fits(to) &&
         dense_strides(from.shape)[static_cast<size_t>(a.axis)] ==
             dense_strides(to.shape)[static_cast<size_t>(b.axis)];
}

std::vector<int64_t> dense_strides(const std::vector<int32_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max(shape[d], 1);  // a tensor with a size of 0 has no elements
  }
  return strides;
}

int element_bits(DType dtype) {
  const DTypeInfo* type = info(dtype);
  if (!type || type->block_elements == 0 || type->block_elements > 2) return 0;
  return 8 * type->block_bytes / type->block_elements;
}

Fault value_fault(const OpView& op, std::string message) {
  return {Code::E_RUN_VALUE, std::move(message), op_name(op.op())};
}

kernels::GridChange MovePlan::change(const ElementGrid& from, size_t k, size_t channel) const {
  const QParams& q = *out[k].tensor->quant;
  const DTypeInfo& type = *info(out[k].dtype());
  kernels::GridChange change{from.scale,
                             static_cast<int32_t>(from.zero_point),
                             q.scale[channel],
                             static_cast<int32_t>(q.zero_point[channel]),
                             static_cast<int32_t>(type.lowest),
                             static_cast<int32_t>(type.highest)};
  if (!limits.empty()) {
    change.lo = limits[channel].lo + change.to_zero;
    change.hi = limits[channel].hi + change.to_zero;
  }
  return change;
}

int32_t MovePlan::changed(const ElementGrid& from, size_t k, size_t channel, int32_t q) const {
  if (fused != kernels::Fused::tanh) return kernels::requantize_value(change(from, k, channel), q);
  const kernels::Rounder& to = limits[channel];
  const double x = (static_cast<double>(q) - static_cast<double>(from.zero_point)) * from.scale;
  return static_cast<int32_t>(kernels::nearest(kernels::real_tanh(x) / to.scale, to.lo, to.hi)) +
         to.zero_point;
}

Result<std::shared_ptr<const MovePlan>> make_plan(Builder& builder, const Ints& ints, MoveFunction function,
                                                  Order order) {
  auto plan = std::make_shared<MovePlan>(builder);
  const OpInfo& op = *builder.op().op;
  plan->function = std::move(function);
  for (size_t i = 0; i < builder.inputs(); ++i) plan->in.push_back(builder.in(i));
  for (size_t k = 0; k < builder.outputs(); ++k) plan->out.push_back(builder.out(k));
  const DType dtype = plan->out[0].dtype();
  plan->bits = element_bits(dtype);
  if (plan->bits == 0 || plan->bits > 64) return builder.unsupported("moves no elements of this type");

  plan->sources.resize(plan->in.size());
  bool keep = true, one = true;
  for (size_t i = 0; i < plan->in.size(); ++i) {
    const TensorArg& x = plan->in[i];
    if (!x || op.input(i).role != 'x' || is_ggml(x.dtype())) continue;
    if (!grid_fits(x)) return builder.unsupported("has not a scale for each channel");
    add_source(*plan, i);
    one &= !x.per_channel() && same(plan->grids.back(), plan->grids[0]);
    const bool reordered = order == Order::Any && x.per_channel();
    for (const TensorArg& y : plan->out) keep &= same_bytes(x, y) && (!reordered || !has_grid(y));
  }
  for (const TensorArg& y : plan->out) {
    if (!grid_fits(y)) return builder.unsupported("has not a scale for each channel");
    plan->out_strides.push_back(dense_strides(y.shape));
    one &= !y.per_channel();
  }
  plan->grids.push_back({1.0f, 0, false});
  if (is_quantized(dtype) && fused_of(builder) != kernels::Fused::none) {
    plan->fused = fused_of(builder);
    plan->limits = channel_rounders(plan->out[0], plan->fused);
    keep = one = false;
  }
  if (!keep) {
    plan->grid_mode = one ? MovePlan::Grids::One : MovePlan::Grids::ByElement;
    if (!is_quantized(dtype) && dtype != DType::INT32)
      return builder.unsupported("has input and output of different grids");
    plan->kind = {plan->bits, info(dtype)->lowest < 0};
  }
  if (plan->grid_mode == MovePlan::Grids::ByElement) {
    plan->counting.resize(plan->grids.size());
    std::iota(plan->counting.begin(), plan->counting.end(), 0);
    for (const TensorArg& y : plan->out) plan->numbers.push_back(builder.scratch(4 * y.elements));
  }

  plan->ints = ComputedInts(builder, ints);
  return std::shared_ptr<const MovePlan>(std::move(plan));
}

}  // namespace pyquant::circle
