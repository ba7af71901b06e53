// SPDX-License-Identifier: Apache-2.0
// Reductions over axes, and sums along one: MEAN, SUM, REDUCE_MAX, REDUCE_MIN, CUMSUM.
#include "kernels/reduce.h"

#include <algorithm>
#include <vector>

#include "circle/ops/operand.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

void infer_reduction(Inference& it) {
  const Shape& x = it.shape(0);
  if (!it.knows(1)) return it.set_declared(0);
  std::vector<bool> reduced(x.size(), false);
  for (int64_t each : it.ints(1)) {
    const auto axis = axis_of(each, x.size());
    if (!axis) return it.fault("axes from -" + std::to_string(x.size()) + " to the rank of the input");
    reduced[*axis] = true;
  }
  Shape y;
  const bool keep = it.option("keep_dims", false);
  for (size_t i = 0; i < x.size(); ++i) {
    if (!reduced[i]) {
      y.push_back(x[i]);
    } else if (keep) {
      y.push_back(1);
    }
  }
  it.set(0, y, "the input without its axes");
}

void infer_cumsum(Inference& it) {
  if (it.elements(1) != 1) return it.fault("one axis");
  if (it.knows(1) && !axis_of(it.ints(1)[0], it.shape(0).size())) return it.fault("an axis of the input");
  it.set(0, it.shape(0), "as the input");
}

/// A step that calls apply(x, y, begin, end) for parts of `units`.
template <class T, class Apply>
Step parts(const InOperand& x, const OutOperand& y, int64_t units, int64_t grain, Apply apply) {
  return {[x, y, units, grain, apply](const Frame& frame) -> Status {
    const T* const from = x.read<T>(frame);
    T* const to = y.write<T>(frame);
    frame.threads().run(units, grain, [&](int64_t begin, int64_t end, int) { apply(from, to, begin, end); });
    y.finish(frame);
    return {};
  }};
}

kernels::Reduction reduction_of(std::string_view name) {
  if (name == "MEAN") return kernels::Reduction::mean;
  if (name == "SUM") return kernels::Reduction::sum;
  return name == "REDUCE_MAX" ? kernels::Reduction::max : kernels::Reduction::min;
}

Result<Step> prepare_reduction(Builder& b) {
  if (any_per_channel(b)) return b.unsupported("a scale for each channel");
  const Shape& shape = b.in(0).shape;
  const auto axes = known_ints(b.in(1));
  if (!axes) return b.unsupported("axes that are computed");
  if (shape.size() > kernels::ReduceMap::kMost) return b.unsupported("more than 32 dimensions");
  bool reduced[kernels::ReduceMap::kMost] = {};
  for (int64_t axis : *axes) reduced[*axis_of(axis, shape.size())] = true;
  kernels::Reduce plan;
  plan.kind = reduction_of(b.op().op->name);
  kernels::ReduceMap::make(shape.data(), static_cast<int>(shape.size()), reduced, &plan.map);
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  if (is_quantized(x.dtype())) {
    plan.in = x.qparams();
    plan.out = kernels::Rounder::make(y.qparams(), y.grid());
  }
  const int64_t units = plan.map.units();
  const int64_t grain = std::max<int64_t>(1, 8192 * units / std::max<int64_t>(x.elements(), 1));
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    return parts<T>(x, y, units, grain, [plan](const T* from, T* to, int64_t begin, int64_t end) {
      kernels::reduce(plan, from, to, begin, end);
    });
  });
}

Result<Step> prepare_cumsum(Builder& b) {
  if (any_per_channel(b)) return b.unsupported("a scale for each channel");
  const Shape& shape = b.in(0).shape;
  const auto given = known_ints(b.in(1));
  if (!given) return b.unsupported("an axis that is computed");
  const size_t axis = *axis_of((*given)[0], shape.size());
  kernels::Cumsum plan;
  plan.size = shape[axis];
  for (size_t d = axis + 1; d < shape.size(); ++d) plan.inner *= shape[d];
  plan.exclusive = b.option("exclusive", false);
  plan.reverse = b.option("reverse", false);
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  if (is_quantized(x.dtype())) {
    plan.in = x.qparams();
    plan.out = kernels::Rounder::make(y.qparams(), y.grid());
  }
  const int64_t lines = plan.size == 0 ? 0 : x.elements() / plan.size;
  const int64_t grain = std::max<int64_t>(1, 2048 / std::max<int64_t>(plan.size, 1));
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    return parts<T>(x, y, lines, grain, [plan](const T* from, T* to, int64_t begin, int64_t end) {
      kernels::cumsum(plan, from, to, begin, end);
    });
  });
}

}  // namespace

std::vector<OpRow> reduce_rows() {
  return {{"MEAN", infer_reduction, prepare_reduction},
          {"SUM", infer_reduction, prepare_reduction},
          {"REDUCE_MAX", infer_reduction, prepare_reduction},
          {"REDUCE_MIN", infer_reduction, prepare_reduction},
          {"CUMSUM", infer_cumsum, prepare_cumsum}};
}

}  // namespace pyquant::circle
