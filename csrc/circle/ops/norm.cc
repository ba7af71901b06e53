// SPDX-License-Identifier: Apache-2.0
// RMS_NORM, INSTANCE_NORM, ROPE.
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

}  // namespace

std::vector<OpRow> norm_rows() {
  return {{"RMS_NORM", infer_rms_norm, nullptr, onert_rms_norm},
          {"INSTANCE_NORM", infer_instance_norm},
          {"ROPE", infer_rope, nullptr, onert_rope}};
}

}  // namespace pyquant::circle
