// SPDX-License-Identifier: Apache-2.0
// How FULLY_CONNECTED is run: rows of x times rows of the weights.
#include "circle/ops/product.h"

namespace pyquant::circle {

Result<Step> prepare_fully_connected(Builder& b) {
  if (b.option<int64_t>("weights_format", 0) != 0) return b.unsupported("shuffled weights are not run");
  auto made = Product::of(b, b.in(2), 0);
  if (!made.ok()) return made.fault();
  Product p = std::move(made).value();
  kernels::Linear& l = p.linear;
  l.columns = b.in(1).shape[0];
  l.depth = b.in(1).shape[1];
  l.rows = l.columns ? b.out(0).elements / l.columns : 0;
  l.x.row_step = l.w.row_step = l.depth;
  l.y.row_step = l.columns;
  PYQUANT_TRY(p.place(b));
  Step step;
  step.multiply_adds = l.rows * l.columns * l.depth;
  step.run = [p](const Frame& frame) -> Status {
    const kernels::Linear linear = p.at(frame);
    void* const prepared = p.prepared(frame);
    frame.threads().run(linear.rows, p.row_grain(), [&](int64_t begin, int64_t end, int) {
      kernels::prepare_rows(linear, p.plan, begin, end, prepared);
    });
    frame.threads().run(p.plan.units, p.unit_grain(), [&](int64_t begin, int64_t end, int) {
      kernels::run_units(linear, p.plan, prepared, begin, end);
    });
    p.pack(frame);
    return {};
  };
  return step;
}

}  // namespace pyquant::circle
