// SPDX-License-Identifier: Apache-2.0
// SOFTMAX and LOG_SOFTMAX over the last dimension.
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

void infer(Inference& it) {
  if (it.shape(0).empty()) return it.fault("at least one dimension");
  infer_same(it);
}

}  // namespace

std::vector<OpRow> softmax_rows() {
  OpRow softmax{"SOFTMAX", infer};
  softmax.fixed = [](bool narrow) { return FixedGrid{narrow ? 1.0f / 255.0f : 1.0f / 32767.0f, 0}; };
  return {softmax, {"LOG_SOFTMAX", infer}};
}

}  // namespace pyquant::circle
