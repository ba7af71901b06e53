// SPDX-License-Identifier: Apache-2.0
// How FULLY_CONNECTED is run: rows of x times rows of the weights.
#include "circle/ops/product.h"

namespace pyquant::circle {
namespace {

/// Rows of SHUFFLED16x1FLOAT32 weights that lie side by side: one element of each, then the next.
constexpr int64_t kShuffled = 16;

Step by_channel(Builder& b) {
  const int64_t columns = b.in(1).shape[0], depth = b.in(1).shape[1];
  return product_by_channel(b, b.in(2), depth, columns, [=](int64_t i, const AddTerm& add) {
    const int64_t row = i / columns * depth, column = i % columns * depth;
    for (int64_t k = 0; k < depth; ++k) add(row + k, column + k);
  });
}

}  // namespace

Result<Step> prepare_fully_connected(Builder& b) {
  if (!Product::takes(b, b.in(2), 0)) return by_channel(b);
  const bool shuffled = b.option<int64_t>("weights_format", 0) != 0;
  Product p(b, b.in(2), 0);
  kernels::Linear& l = p.linear;
  const int64_t columns = b.in(1).shape[0], parts = shuffled ? columns / kShuffled : 1;
  l.columns = shuffled ? kShuffled : columns;
  l.depth = b.in(1).shape[1];
  l.rows = columns ? b.out(0).elements / columns : 0;
  l.x.row_step = l.depth;
  l.w.row_step = shuffled ? 1 : l.depth;
  l.w.column_step = shuffled ? kShuffled : 1;
  l.y.row_step = columns;
  if (!p.place(b)) return by_channel(b);
  Step step;
  step.multiply_adds = l.rows * columns * l.depth;
  step.run = [p, parts](const Frame& frame) -> Status {
    kernels::Linear linear = p.at(frame);
    void* const prepared = p.prepared(frame);
    frame.threads().run(linear.rows, p.row_grain(), [&](int64_t begin, int64_t end, int) {
      kernels::prepare_rows(linear, p.plan, begin, end, prepared);
    });
    for (int64_t part = 0; part < parts; ++part) {
      frame.threads().run(p.plan.units, p.unit_grain(), [&](int64_t begin, int64_t end, int) {
        kernels::run_units(linear, p.plan, prepared, begin, end);
      });
      linear.w.first += kShuffled * linear.depth;
      linear.y.first += kShuffled;
      if (linear.bias) linear.bias = static_cast<const float*>(linear.bias) + kShuffled;
    }
    p.pack(frame);
    return {};
  };
  return step;
}

}  // namespace pyquant::circle
