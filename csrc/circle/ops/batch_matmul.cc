// SPDX-License-Identifier: Apache-2.0
// How BATCH_MATMUL is run: a matrix product for each batch; batches broadcast, either side may be transposed.
#include "circle/ops/product.h"

namespace pyquant::circle {
namespace {

/// For each batch of the output, which one of an operand it takes.
std::vector<int64_t> batches_of(const std::vector<int32_t>& shape, const std::vector<int32_t>& output) {
  if (*element_count(output) == 0) return {};
  std::vector<int64_t> taken = {0};
  const size_t rank = output.size() - 2, missing = output.size() - shape.size();
  for (size_t d = 0; d < rank; ++d) {
    const int64_t size = d < missing ? 1 : shape[d - missing];
    std::vector<int64_t> next;
    for (int64_t at : taken) {
      for (int64_t i = 0; i < output[d]; ++i) next.push_back(at * size + (size == 1 ? 0 : i));
    }
    taken = std::move(next);
  }
  return taken;
}

int64_t count_of(const std::vector<int32_t>& shape) {
  int64_t count = 1;
  for (size_t d = 0; d + 2 < shape.size(); ++d) count *= shape[d];
  return count;
}

struct Batches {
  std::vector<int64_t> x, w;  // by batch of the output
  int64_t x_count;            // of different ones
  int64_t x_elements, w_elements, y_elements;
};

/// Where scales are others than one for each column of the product.
Step by_channel(Builder& b) {
  const std::vector<int32_t>&x = b.in(0).shape, &w = b.in(1).shape, &y = b.out(0).shape;
  const bool x_transposed = b.option("adjoint_lhs", false), w_rows = b.option("adjoint_rhs", false);
  const int64_t rows = y[y.size() - 2], columns = y.back(), depth = x[x.size() - (x_transposed ? 2 : 1)];
  const std::vector<int64_t> x_batches = batches_of(x, y), w_batches = batches_of(w, y);
  return product_by_channel(b, TensorArg(), depth, columns, [=](int64_t i, const AddTerm& add) {
    const auto batch = static_cast<size_t>(i / (rows * columns));
    const int64_t row = i / columns % rows, column = i % columns;
    const int64_t left = x_batches[batch] * rows * depth, right = w_batches[batch] * columns * depth;
    for (int64_t k = 0; k < depth; ++k) {
      add(left + (x_transposed ? k * rows + row : row * depth + k),
          right + (w_rows ? column * depth + k : k * columns + column));
    }
  });
}

}  // namespace

Result<Step> prepare_batch_matmul(Builder& b) {
  const std::vector<int32_t>&x = b.in(0).shape, &w = b.in(1).shape, &y = b.out(0).shape;
  const bool x_transposed = b.option("adjoint_lhs", false), w_rows = b.option("adjoint_rhs", false);
  const size_t channel_axis = w.size() - (w_rows ? 2 : 1);
  if (!Product::takes(b, TensorArg(), channel_axis)) return by_channel(b);
  Product p(b, TensorArg(), channel_axis, w_rows);
  kernels::Linear& l = p.linear;
  l.rows = y[y.size() - 2];
  l.columns = y.back();
  l.depth = x[x.size() - (x_transposed ? 2 : 1)];
  Batches batches{batches_of(x, y), batches_of(w, y),    count_of(x),
                  l.rows * l.depth, l.columns * l.depth, l.rows * l.columns};
  if (count_of(w) == 1 && !x_transposed && batches.x_count == static_cast<int64_t>(batches.x.size())) {
    // One matrix for all batches: they are its rows.
    l.rows *= batches.x_count;
    batches.x = batches.w = {0};
    batches.x_count = 1;
  }
  l.x.row_step = x_transposed ? 1 : l.depth;
  l.x.column_step = x_transposed ? l.rows : 1;
  l.w.row_step = w_rows ? l.depth : 1;
  l.w.column_step = w_rows ? 1 : l.columns;
  l.y.row_step = l.columns;
  if (batches.x.empty()) batches.x_count = 0;
  if (!p.place(b, batches.x_count)) return by_channel(b);
  Step step;
  step.multiply_adds = b.out(0).elements * l.depth;
  step.run = [p, batches](const Frame& frame) -> Status {
    const kernels::Linear linear = p.at(frame);
    const int64_t rows = linear.rows, units = p.plan.units;
    frame.threads().run(batches.x_count * rows, p.row_grain(), [&](int64_t begin, int64_t end, int) {
      while (begin < end) {
        const int64_t batch = begin / rows, stop = std::min(end, (batch + 1) * rows);
        kernels::Linear one = linear;
        one.x.first = batch * batches.x_elements;
        kernels::prepare_rows(one, p.plan, begin - batch * rows, stop - batch * rows,
                              p.prepared(frame, batch));
        begin = stop;
      }
    });
    const auto count = static_cast<int64_t>(batches.x.size());
    frame.threads().run(count * units, p.unit_grain(), [&](int64_t begin, int64_t end, int) {
      while (begin < end) {
        const int64_t batch = begin / units, stop = std::min(end, (batch + 1) * units);
        const auto i = static_cast<size_t>(batch);
        kernels::Linear one = linear;
        one.w.first = batches.w[i] * batches.w_elements;
        one.y.first = batch * batches.y_elements;
        kernels::run_units(one, p.plan, p.prepared(frame, batches.x[i]), begin - batch * units,
                           stop - batch * units);
        begin = stop;
      }
    });
    p.pack(frame);
    return {};
  };
  return step;
}

}  // namespace pyquant::circle
