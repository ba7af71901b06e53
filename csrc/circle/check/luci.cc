// SPDX-License-Identifier: Apache-2.0
// Target luci: the rules of ONE's verifier of quantized models, per operator as ops.def names them, plus
// granularity and bias scales. They are for fully quantized models: a float operand is a fault.
#include <cmath>

#include "circle/check/check.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

class LuciCheck {
 public:
  LuciCheck(const Model& model, const Graph& graph, const Operator& op, std::string where, Faults& faults)
      : model_(model),
        graph_(graph),
        op_(op),
        row_(row_of(*op.op)),
        where_(std::move(where)),
        faults_(faults) {}

  void run() {
    switch (op_.op->luci) {
      case LuciRule::None:
        return;
      case LuciRule::Group:
        return group();
      case LuciRule::Fixed:
        group();
        return fixed();
      case LuciRule::IntegerScale:
        group();
        return integer_scale();
      case LuciRule::Weights:
        return weights();
      case LuciRule::Indexed:
        group();
        return index_operands(false);
      case LuciRule::IndexedWide:
        // ARG_MAX gives indices, so only its input is quantized.
        if (op_.op->kind != OpKind::Index) group();
        return index_operands(true);
      case LuciRule::Same:
        group();
        return same_qparams_as_input();
      case LuciRule::Comparison:
      case LuciRule::Concat:
        return group();
      case LuciRule::Cast:
        return;  // E_OPTION_VALUE of every target
    }
  }

 private:
  void fault(Code code, const std::string& message) { faults_.add(code, where_, message); }

  // The one quantized type of the operator: that of its data. Plain integer arithmetic is no business of
  // these rules.
  const Tensor* data() const {
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      if (op_.op->input(i).role == 'x') return input(graph_, op_, i);
    }
    return nullptr;
  }

  static bool is_type(DType dtype) { return dtype == DType::UINT8 || dtype == DType::INT16; }

  void group() {
    const Tensor* first = data();
    if (!first || is_index(first->dtype) || first->dtype == DType::BOOL) return;
    const auto judge = [&](const Tensor* t, char role, const std::string& operand) {
      if (!t || role != 'x') return;
      if (!is_type(t->dtype)) fault(Code::E_LUCI_DTYPE, operand + ": expected uint8 or int16");
    };
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      judge(input(graph_, op_, i), op_.op->input(i).role, input_text(graph_, op_, i));
    }
    for (size_t i = 0; i < op_.outputs.size(); ++i) {
      judge(output(graph_, op_, i), op_.op->output(i).role, output_text(graph_, op_, i));
    }
  }

  void fixed() {
    const Tensor* out = output(graph_, op_, 0);
    if (!out || !is_type(out->dtype) || !out->quant || out->quant->scale.size() != 1) return;
    if (!row_.fixed) return;
    const auto [scale, zero_point] = row_.fixed(out->dtype == DType::UINT8);
    if (out->quant->scale[0] == scale && out->quant->zero_point == std::vector<int64_t>{zero_point}) return;
    Tensor expected;
    expected.quant = QParams{{scale}, {zero_point}, 0, 0};
    fault(Code::E_LUCI_FIXED_QPARAMS, output_text(graph_, op_, 0) + " has " + qparams_text(*out) +
                                          ", expected " + qparams_text(expected));
  }

  void integer_scale() {
    const Tensor* out = output(graph_, op_, 0);
    if (!out || !out->quant || out->quant->scale.empty()) return;
    const float scale = out->quant->scale[0];
    if (scale >= 1 && scale == std::round(scale)) return;
    fault(Code::E_LUCI_INTEGER_SCALE,
          output_text(graph_, op_, 0) + " has " + qparams_text(*out) + ", expected a scale of 1, 2, 3 ...");
  }

  void index_operands(bool wide) {
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      const Tensor* t = input(graph_, op_, i);
      if (op_.op->input(i).role != 'i' || !t || t->dtype == DType::INT32 ||
          (wide && t->dtype == DType::INT64))
        continue;
      fault(Code::E_LUCI_INDEX_DTYPE,
            input_text(graph_, op_, i) + ": expected int32" + (wide ? " or int64" : ""));
    }
  }

  void same_qparams_as_input() {
    const Tensor* in = data();
    for (size_t i = 0; in && i < op_.outputs.size(); ++i) {
      const Tensor* out = output(graph_, op_, i);
      if (!out || same_qparams(*in, *out)) continue;
      fault(Code::E_LUCI_SAME_QPARAMS, output_text(graph_, op_, i) + " has " + qparams_text(*out) +
                                           ", expected those of the input: " + qparams_text(*in));
    }
  }

  void weights() {
    group();
    const Tensor* x = data();
    const Tensor* w = input(graph_, op_, 1);
    const Tensor* bias = input(graph_, op_, 2);
    if (!x || !w || !is_type(x->dtype)) return;
    if (w->dtype != x->dtype) {
      fault(Code::E_LUCI_WEIGHT_DTYPE,
            input_text(graph_, op_, 1) + ": expected " + name_of(x->dtype) + ", as the data");
    }
    granularity(*w);
    if (!bias || !is_constant_input(model_, graph_, op_, 2)) return;
    const DType wanted = x->dtype == DType::UINT8 ? DType::INT32 : DType::INT64;
    if (bias->dtype != wanted) {
      fault(Code::E_LUCI_BIAS_DTYPE, input_text(graph_, op_, 2) + ": expected " + name_of(wanted));
    }
    bias_scale(*x, *w, *bias);
  }

  // Per channel of the output axis: dimension 0, but 3 for depthwise convolutions; or one scale for all.
  void granularity(const Tensor& w) {
    if (!w.quant || w.quant->scale.size() <= 1) return;
    const int32_t axis = row_.channel_axis;
    if (w.quant->axis == axis) return;
    fault(Code::E_LUCI_GRANULARITY, input_text(graph_, op_, 1) + " is quantized along dimension " +
                                        std::to_string(w.quant->axis) + ", expected " + std::to_string(axis));
  }

  void bias_scale(const Tensor& x, const Tensor& w, const Tensor& bias) {
    if (!x.quant || !w.quant || !bias.quant || x.quant->scale.size() != 1) return;
    if (bias.quant->scale.size() != w.quant->scale.size()) {
      return fault(Code::E_LUCI_BIAS_SCALE,
                   input_text(graph_, op_, 2) + " has " + std::to_string(bias.quant->scale.size()) +
                       " scales, the weights have " + std::to_string(w.quant->scale.size()));
    }
    for (size_t i = 0; i < bias.quant->scale.size(); ++i) {
      const float expected = x.quant->scale[0] * w.quant->scale[i];
      if (std::fabs(bias.quant->scale[i] - expected) < 1e-10f) continue;
      fault(Code::E_LUCI_BIAS_SCALE, input_text(graph_, op_, 2) + " scale[" + std::to_string(i) +
                                         "] is not the input's scale x the weights' scale");
      return;
    }
  }

  const Model& model_;
  const Graph& graph_;
  const Operator& op_;
  const OpRow& row_;
  const std::string where_;
  Faults& faults_;
};

// Everything but constants has one scale.
void check_activations(const Model& model, const Graph& graph, Faults& faults) {
  for (size_t i = 0; i < graph.tensors.size(); ++i) {
    const Tensor& t = graph.tensors[i];
    if (!t.quant || model.is_constant(graph.tensors[i]) || t.quant->scale.size() == 1) continue;
    faults.add(Code::E_LUCI_GRANULARITY, tensor_place(graph, static_cast<int64_t>(i)),
               "is an activation with " + std::to_string(t.quant->scale.size()) + " scales, expected 1");
  }
}

}  // namespace

void check_luci(const Model& model, const Graph& graph, Faults& faults) {
  check_activations(model, graph, faults);
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    const Operator& op = graph.operators[i];
    if (op.op) LuciCheck(model, graph, op, operator_place(graph, i), faults).run();
  }
}

}  // namespace pyquant::circle
