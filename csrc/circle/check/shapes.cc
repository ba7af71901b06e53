// SPDX-License-Identifier: Apache-2.0
// Pass 5: the shapes of operands against each other, where an operator has a simple rule. Dynamic shapes are
// not checked.
#include <algorithm>

#include "circle/check/check.h"

namespace pyquant::circle {
namespace {

using Shape = std::vector<int32_t>;

// NumPy's broadcasting; nothing when the shapes do not fit.
std::optional<Shape> broadcast(const Shape& a, const Shape& b) {
  Shape out(std::max(a.size(), b.size()));
  for (size_t i = 0; i < out.size(); ++i) {
    const int32_t x = i < a.size() ? a[a.size() - 1 - i] : 1;
    const int32_t y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1) return std::nullopt;
    out[out.size() - 1 - i] = x == 1 ? y : x;
  }
  return out;
}

class ShapeCheck {
 public:
  ShapeCheck(const Model& model, const Operator& op, std::string where, Faults& faults)
      : model_(model), op_(op), name_(op.op->name), where_(std::move(where)), faults_(faults) {}

  void run() {
    const OpInfo& info = *op_.op;
    if (!complete()) return;
    if (name_ == "FULLY_CONNECTED") return fully_connected();
    if (name_ == "BATCH_MATMUL") return batch_matmul();
    if (name_ == "RMS_NORM") return same(0);
    if (name_ == "TRANSPOSE") return transpose();
    if (name_ == "CONCATENATION") return concatenation();
    if (name_ == "SPLIT" || name_ == "SPLIT_V") return split();
    if (name_ == "RESHAPE" || name_ == "SQUEEZE" || name_ == "EXPAND_DIMS") return elements();
    if (name_ == "BROADCAST_TO") return fits(broadcast(in(0), out(0)), "what the input broadcasts to");
    if (name_ == "SELECT_V2" || name_ == "SELECT") return select();
    if (info.kind == OpKind::Convert) return same(0);
    if (info.kind != OpKind::Arith && info.kind != OpKind::Compare) return;
    if (info.inputs.size() == 1) return same(0);
    if (info.inputs.size() == 2 && info.inputs[1].role == 'x') {
      return fits(broadcast(in(0), in(1)), "what the inputs broadcast to");
    }
  }

 private:
  const Shape& in(size_t i) const { return input(model_, op_, i)->shape; }
  const Shape& out(size_t i) const { return output(model_, op_, i)->shape; }

  // Counts as in ops.def, every operand there with a size, nothing dynamic.
  bool complete() const {
    const OpInfo& info = *op_.op;
    if (op_.inputs.size() < info.min_inputs() || op_.inputs.size() > info.max_inputs()) return false;
    if (op_.outputs.size() < info.min_outputs() || op_.outputs.size() > info.max_outputs()) return false;
    const auto usable = [](const Tensor* t) { return t && !is_dynamic(*t) && element_count(t->shape); };
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      if (op_.inputs[i] == -1 && info.input(i).may_be_none) continue;
      if (!usable(input(model_, op_, i))) return false;
    }
    for (size_t i = 0; i < op_.outputs.size(); ++i) {
      if (!usable(output(model_, op_, i))) return false;
    }
    return true;
  }

  std::string operands() const {
    std::string text;
    for (size_t i = 0; i < op_.inputs.size() && i < 4; ++i) {
      if (op_.inputs[i] != -1) text += input_text(model_, op_, i) + ", ";
    }
    return text + output_text(model_, op_, 0);
  }

  void fault(const std::string& expected) {
    faults_.add(Code::E_OPERAND_SHAPE, where_, operands() + ": expected " + expected);
  }

  void fits(const std::optional<Shape>& expected, const char* what) {
    if (!expected) return fault("shapes that broadcast");
    if (*expected != out(0)) fault("output " + shape_text(*expected) + ", " + what);
  }

  void same(size_t i) {
    if (in(i) != out(0)) fault("output " + shape_text(in(i)) + ", as the input");
  }

  void elements() {
    if (element_count(in(0)) != element_count(out(0))) {
      fault("as many elements in the output as in the input, " + std::to_string(*element_count(in(0))));
    }
  }

  void select() {
    const auto both = broadcast(in(1), in(2));
    fits(both ? broadcast(in(0), *both) : std::nullopt, "what the inputs broadcast to");
  }

  void transpose() {
    const auto permutation = constant_ints(model_, op_, 1);
    if (in(1) != Shape{static_cast<int32_t>(in(0).size())})
      return fault("a permutation of the input's dimensions");
    if (permutation.empty()) return;
    Shape expected;
    std::vector<bool> seen(in(0).size(), false);
    for (int64_t p : permutation) {
      const auto rank = static_cast<int64_t>(in(0).size());
      if (p < 0 || p >= rank || seen[static_cast<size_t>(p)])
        return fault("a permutation of the input's dimensions");
      seen[static_cast<size_t>(p)] = true;
      expected.push_back(in(0)[static_cast<size_t>(p)]);
    }
    fits(expected, "the permuted input");
  }

  // Weights are [out, in]; the leading dimensions of x are kept, or folded into one.
  void fully_connected() {
    const Shape& w = in(1);
    if (w.size() != 2 || in(0).empty() || out(0).empty())
      return fault("weights [out, in], and at least one dimension");
    // Divisions, since a product of corrupt sizes could overflow.
    const int64_t x = *element_count(in(0)), columns = std::max(w[1], 1);
    const int64_t y = *element_count(out(0)), units = std::max(w[0], 1);
    if (x % columns != 0 || out(0).back() != w[0] || y % units != 0 || x / columns != y / units) {
      return fault("x [..., " + std::to_string(w[1]) + "] and output [..., " + std::to_string(w[0]) + "]");
    }
    if (op_.inputs[2] != -1 && *element_count(in(2)) != w[0])
      fault("a bias of " + std::to_string(w[0]) + " elements");
    if (option(op_, "keep_num_dims", false) && out(0).size() != in(0).size())
      fault("an output of x's rank (keep_num_dims)");
  }

  void batch_matmul() {
    Shape a = in(0), b = in(1);
    if (a.size() < 2 || b.size() < 2) return fault("at least two dimensions");
    if (option(op_, "adjoint_lhs", false)) std::swap(a.back(), a[a.size() - 2]);
    if (option(op_, "adjoint_rhs", false)) std::swap(b.back(), b[b.size() - 2]);
    if (a.back() != b[b.size() - 2]) return fault("inner dimensions that agree");
    auto expected = broadcast(Shape(a.begin(), a.end() - 2), Shape(b.begin(), b.end() - 2));
    if (expected) expected->insert(expected->end(), {a[a.size() - 2], b.back()});
    fits(expected, "the product");
  }

  void concatenation() {
    const auto rank = static_cast<int64_t>(out(0).size());
    int64_t axis = option<int64_t>(op_, "axis", 0);
    axis += axis < 0 ? rank : 0;
    if (axis < 0 || axis >= rank) return;  // reported as E_OPTION_VALUE
    Shape expected = in(0);
    if (expected.size() != out(0).size()) return fault("one rank");
    for (size_t i = 1; i < op_.inputs.size(); ++i) {
      Shape part = in(i);
      if (part.size() != expected.size()) return fault("one rank");
      const auto at = static_cast<size_t>(axis);
      expected[at] = static_cast<int32_t>(int64_t{expected[at]} + part[at]);
      part[at] = expected[at];
      if (part != expected) return fault("dimensions that agree outside the axis");
    }
    fits(expected, "the joined inputs");
  }

  void split() {
    uint64_t total = 0;
    for (size_t i = 0; i < op_.outputs.size(); ++i) total += static_cast<uint64_t>(*element_count(out(i)));
    const size_t data = name_ == "SPLIT" ? 1 : 0;
    if (total != static_cast<uint64_t>(*element_count(in(data)))) fault("outputs that make up the input");
  }

  const Model& model_;
  const Operator& op_;
  const std::string_view name_;
  const std::string where_;
  Faults& faults_;
};

}  // namespace

void check_shapes(const Model& model, Faults& faults) {
  for (size_t i = 0; i < model.operators.size(); ++i) {
    const Operator& op = model.operators[i];
    if (op.op) ShapeCheck(model, op, operator_place(model, i), faults).run();
  }
}

}  // namespace pyquant::circle
