// SPDX-License-Identifier: Apache-2.0
// Places and order of values: ARG_MAX, ARG_MIN, TOPK_V2.
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

void infer_arg(Inference& it) {
  const Shape& x = it.shape(0);
  if (it.elements(1) != 1) return it.fault("one axis");
  if (!it.knows(1)) return it.set_declared(0);
  const auto axis = axis_of(it.ints(1)[0], x.size());
  if (!axis || x[*axis] == 0) return it.fault("an axis of the input, and values along it");
  Shape y = x;
  y.erase(y.begin() + static_cast<std::ptrdiff_t>(*axis));
  it.set(0, y, "the input without its axis");
}

void infer_topk(Inference& it) {
  const Shape& x = it.shape(0);
  if (x.empty() || it.elements(1) != 1) return it.fault("at least one dimension, and one number k");
  if (!it.knows(1)) {
    it.set_declared(0);
    return it.set_declared(1);
  }
  const int64_t k = it.ints(1)[0];
  if (k < 0 || k > x.back()) return it.fault("a k from 0 to " + std::to_string(x.back()));
  Shape y = x;
  y.back() = static_cast<int32_t>(k);
  it.set(0, y, "the k largest of the last dimension");
  it.set(1, y, "the k largest of the last dimension");
}

}  // namespace

std::vector<OpRow> order_rows() {
  return {{"ARG_MAX", infer_arg}, {"ARG_MIN", infer_arg}, {"TOPK_V2", infer_topk}};
}

}  // namespace pyquant::circle
