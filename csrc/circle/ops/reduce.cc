// SPDX-License-Identifier: Apache-2.0
// Reductions over axes, and sums along one: MEAN, SUM, REDUCE_MAX, REDUCE_MIN, CUMSUM.
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

}  // namespace

std::vector<OpRow> reduce_rows() {
  return {{"MEAN", infer_reduction},
          {"SUM", infer_reduction},
          {"REDUCE_MAX", infer_reduction},
          {"REDUCE_MIN", infer_reduction},
          {"CUMSUM", infer_cumsum}};
}

}  // namespace pyquant::circle
