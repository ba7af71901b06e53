// SPDX-License-Identifier: Apache-2.0
// Reductions over axes, and sums along one: MEAN, SUM, REDUCE_MAX, REDUCE_MIN, CUMSUM.
#include "kernels/reduce.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "circle/ops/computed.h"
#include "circle/ops/moves.h"
#include "circle/ops/operand.h"

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

kernels::Reduction reduction_of(std::string_view name) {
  if (name == "MEAN") return kernels::Reduction::mean;
  if (name == "SUM") return kernels::Reduction::sum;
  return name == "REDUCE_MAX" ? kernels::Reduction::max : kernels::Reduction::min;
}

/// Which dimensions a list of axes names.
std::unique_ptr<bool[]> reduced_of(const Shape& shape, const std::vector<int64_t>& axes) {
  std::unique_ptr<bool[]> reduced(new bool[shape.size() + 1]());
  for (int64_t axis : axes) reduced[*axis_of(axis, shape.size())] = true;
  return reduced;
}

/// Results and their values, where scales differ from channel to channel.
struct RealReduction {
  kernels::Nest<1> kept, reduced;

  RealReduction(const Shape& shape, const std::vector<int64_t>& axes) {
    const auto is_reduced = reduced_of(shape, axes);
    const auto strides = dense_strides(shape);
    for (size_t d = 0; d < shape.size(); ++d) (is_reduced[d] ? reduced : kept).add(shape[d], {strides[d]});
  }
};

Step reduce_by_channel(Builder& b, kernels::Reduction kind, const ComputedInts& ints) {
  const RealOperand x(b, 0);
  const ChannelResult y(b, 0);
  const size_t products = b.scratch(x.elements() * static_cast<int64_t>(sizeof(kernels::Product)));
  return planned_step(
      ints, [shape = b.in(0).shape](const IntValues& values) { return RealReduction(shape, values[1]); },
      [=](const Frame& frame, const RealReduction& plan) {
        kernels::reduce_channels(kind, plan.kept, plan.reduced, x.read(frame),
                                 frame.scratch<kernels::Product>(products), y.at(frame), 0, y.elements());
        y.finish(frame);
      });
}

Result<Step> prepare_reduction(Builder& b) {
  const ComputedInts ints(b, {1});
  kernels::Reduce base;
  base.kind = reduction_of(b.op().op->name);
  if (any_per_channel(b)) return reduce_by_channel(b, base.kind, ints);
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  if (is_quantized(x.dtype())) {
    base.in = x.qparams();
    base.out = kernels::Rounder::make(y.qparams(), y.grid());
  }
  const auto plan_of = [base, shape = b.in(0).shape](const IntValues& values) {
    kernels::Reduce plan = base;
    kernels::ReduceMap::make(shape.data(), static_cast<int>(shape.size()), reduced_of(shape, values[1]).get(),
                             &plan.map);
    return plan;
  };
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    return planned_step(ints, plan_of, [x, y](const Frame& frame, const kernels::Reduce& plan) {
      const T* const from = x.read<T>(frame);
      T* const to = y.write<T>(frame);
      const int64_t units = plan.map.units();
      const int64_t grain = std::max<int64_t>(1, 8192 * units / std::max<int64_t>(x.elements(), 1));
      frame.threads().run(units, grain, [&](int64_t begin, int64_t end, int) {
        kernels::reduce(plan, from, to, begin, end);
      });
      y.finish(frame);
    });
  });
}

Result<Step> prepare_cumsum(Builder& b) {
  const ComputedInts ints(b, {1});
  kernels::Cumsum base;
  base.exclusive = b.option("exclusive", false);
  base.reverse = b.option("reverse", false);
  const int64_t elements = b.in(0).elements;
  if (!any_per_channel(b) && is_quantized(b.in(0).dtype())) {
    base.in = qparams_of(b.in(0));
    base.out = kernels::Rounder::make(qparams_of(b.out(0)), grid_of(b.out(0).dtype()));
  }
  const auto plan_of = [base, shape = b.in(0).shape](const IntValues& values) {
    kernels::Cumsum plan = base;
    const size_t axis = *axis_of(values[1][0], shape.size());
    plan.size = shape[axis];
    for (size_t d = axis + 1; d < shape.size(); ++d) plan.inner *= shape[d];
    return plan;
  };
  const auto lines_of = [elements](const kernels::Cumsum& plan) {
    return plan.size == 0 ? 0 : elements / plan.size;
  };
  if (any_per_channel(b)) {
    const size_t products = b.scratch(elements * static_cast<int64_t>(sizeof(kernels::Product)));
    return planned_step(
        ints, plan_of,
        [=, x = RealOperand(b, 0), y = ChannelResult(b, 0)](const Frame& frame, const kernels::Cumsum& plan) {
          kernels::cumsum_channels(plan, x.read(frame), frame.scratch<kernels::Product>(products),
                                   y.at(frame), 0, lines_of(plan));
          y.finish(frame);
        });
  }
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    return planned_step(ints, plan_of, [=](const Frame& frame, const kernels::Cumsum& plan) {
      const T* const from = x.read<T>(frame);
      T* const to = y.write<T>(frame);
      const int64_t grain = std::max<int64_t>(1, 2048 / std::max<int64_t>(plan.size, 1));
      frame.threads().run(lines_of(plan), grain, [&](int64_t begin, int64_t end, int) {
        kernels::cumsum(plan, from, to, begin, end);
      });
      y.finish(frame);
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
