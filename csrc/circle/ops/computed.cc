// SPDX-License-Identifier: Apache-2.0
// Values that planning did not know meet the shapes that it assumed.
#include "circle/ops/computed.h"

#include "circle/ops/moves.h"
#include "circle/ops/operand.h"

namespace pyquant::circle {
namespace {

// What the file's shape rules say of the values that this run has.
class RunInference : public Inference {
 public:
  RunInference(const OpView& op, const std::vector<Shape>& shapes, const IntValues& values)
      : Inference(op.model(), op.graph(), op.op(), shapes), values_(values) {}
  std::vector<int64_t> ints(size_t i) const override { return values_[i]; }

 private:
  const IntValues& values_;
};

std::string values_text(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size() && i < 16; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + (values.size() > 16 ? ", ...]" : "]");
}

}  // namespace

ComputedInts::ComputedInts(const Builder& b, const std::vector<size_t>& which) {
  values_.resize(b.inputs());
  for (size_t i : which) {
    if (!b.in(i)) continue;
    if (is_known(b.in(i))) {
      values_[i] = *known_ints(b.in(i));
    } else {
      computed_.push_back(i);
    }
  }
  if (known()) return;
  op_ = std::make_shared<OpView>(b);
  for (size_t i = 0; i < b.inputs(); ++i) in_.push_back(b.in(i));
  for (size_t k = 0; k < b.outputs(); ++k) out_.push_back(b.out(k));
  shapes_.resize(b.graph().tensors.size());
  for (const auto* list : {&in_, &out_}) {
    for (const TensorArg& t : *list) {
      if (t) shapes_[t.index] = t.shape;
    }
  }
}

Status ComputedInts::read(const Frame& frame, IntValues* values) const {
  *values = values_;
  for (size_t i : computed_) (*values)[i] = read_ints(in_[i].dtype(), frame.in(in_[i]), in_[i].elements);
  return known() ? Status() : check(*op_, *values);
}

Status ComputedInts::check(const OpView& op, const IntValues& values) const {
  RunInference inference(op, shapes_, values);
  row_of(*op.op().op).infer(inference);
  std::string seen;
  for (size_t i : computed_) {
    seen += (seen.empty() ? "" : ", ") + op.input_text(i) + " is " + values_text(values[i]);
  }
  if (!inference.fault().empty()) return value_fault(op, seen + ": expected " + inference.fault());
  for (size_t k = 0; k < out_.size(); ++k) {
    const auto& shape = inference.inferred()[k];
    if (!shape || *shape == out_[k].shape) continue;
    return Fault{Code::E_RUN_SHAPE,
                 seen + ", which gives output " + std::to_string(k) + " the shape " + shape_text(*shape) +
                     ", expected " + shape_text(out_[k].shape),
                 op_name(op.op())};
  }
  return {};
}

}  // namespace pyquant::circle
