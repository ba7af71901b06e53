// SPDX-License-Identifier: Apache-2.0
// Pass 5: the shapes of each operator's outputs, against what its row infers from its inputs. Dynamic shapes
// are not checked.
#include "circle/check/check.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

class ShapeCheck : public OpView {
 public:
  ShapeCheck(const Model& model, const Graph& graph, const Operator& op, std::string where, Faults& faults)
      : OpView(model, graph, op), where_(std::move(where)), faults_(faults) {}

  void run(const std::vector<Shape>& shapes) {
    if (!complete()) return;
    Inference inference(model(), graph(), op(), shapes);
    row_of(*op().op).infer(inference);
    if (!inference.fault().empty()) return fault(inference.fault());
    for (size_t k = 0; k < outputs(); ++k) {
      const auto& expected = inference.inferred()[k];
      if (!expected || *expected == output(k)->shape) continue;
      fault("output " + (k ? std::to_string(k) + " " : std::string()) + shape_text(*expected) + ", " +
            inference.why(k));
    }
  }

 private:
  // Counts as in ops.def, every operand there with a size, nothing dynamic.
  bool complete() const {
    const OpInfo& info = *op().op;
    if (inputs() < info.min_inputs() || inputs() > info.max_inputs()) return false;
    if (outputs() < info.min_outputs() || outputs() > info.max_outputs()) return false;
    const auto usable = [](const Tensor* t) { return t && !is_dynamic(*t) && element_count(t->shape); };
    for (size_t i = 0; i < inputs(); ++i) {
      if (op().inputs[i] == -1 && info.input(i).may_be_none) continue;
      if (!usable(input(i))) return false;
    }
    for (size_t i = 0; i < outputs(); ++i) {
      if (!usable(output(i))) return false;
    }
    return true;
  }

  void fault(const std::string& expected) {
    std::string text;
    for (size_t i = 0; i < inputs() && i < 4; ++i) {
      if (op().inputs[i] != -1) text += input_text(i) + ", ";
    }
    faults_.add(Code::E_OPERAND_SHAPE, where_, text + output_text(0) + ": expected " + expected);
  }

  const std::string where_;
  Faults& faults_;
};

}  // namespace

void check_shapes(const Model& model, const Graph& graph, Faults& faults) {
  std::vector<Shape> shapes;
  for (const Tensor& t : graph.tensors) shapes.push_back(t.shape);
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    const Operator& op = graph.operators[i];
    if (op.op) ShapeCheck(model, graph, op, operator_place(graph, i), faults).run(shapes);
  }
}

}  // namespace pyquant::circle
