// SPDX-License-Identifier: Apache-2.0
// Pass 4: option values: enums in range, counts and axes that agree with the operands, dtypes that are the
// operands' own.
#include <cmath>

#include "circle/check/check.h"

namespace pyquant::circle {
namespace {

// Values of enums of the schema (ops.cc).
constexpr int64_t kTanh = 4, kSignBit = 5, kShuffled16 = 127;

class OptionCheck {
 public:
  OptionCheck(const Model& model, const Graph& graph, const Operator& op, std::string where, Faults& faults)
      : model_(model), graph_(graph), op_(op), where_(std::move(where)), faults_(faults) {}

  void run() {
    if (op_.options.empty()) return;
    for (const Field& field : op_.op->options->fields) spelling(field);
    counts();
    axes();
    numbers();
    dtypes();
    new_shape();
    activation();
    weights_format();
  }

 private:
  void fault(const std::string& name, const std::string& seen, const std::string& expected) {
    faults_.add(Code::E_OPTION_VALUE, where_, name + " is " + seen + ", expected " + expected);
  }

  int64_t number(const char* name) const { return option<int64_t>(op_, name, 0); }
  bool has(const char* name) const { return op_.op->option(name) >= 0; }
  size_t rank(size_t i) const {
    const Tensor* t = input(graph_, op_, i);
    return t ? t->shape.size() : 0;
  }

  void spelling(const Field& field) {
    const auto& names = enum_names(field.kind);
    if (names.empty()) return;
    const int64_t value = number(field.name);
    for (const EnumName& name : names) {
      if (name.value == value) return;
    }
    fault(field.name, std::to_string(value), std::string("a value of ") + kind_name(field.kind));
  }

  void equal(const char* name, size_t count, const char* what) {
    if (!has(name) || number(name) == static_cast<int64_t>(count)) return;
    fault(name, std::to_string(number(name)), std::to_string(count) + ", the number of " + what);
  }

  void counts() {
    equal("num_splits", op_.outputs.size(), "outputs");
    equal("num", op_.outputs.size(), "outputs");
    equal("values_count", op_.inputs.size(), "inputs");
  }

  void axes() {
    if (!has("axis") || op_.op->input(0).role == 'i') return;  // ONE_HOT's axis may be one past the rank
    const Tensor* t = input(graph_, op_, 0);
    if (!t) return;
    const auto limit = static_cast<int64_t>(rank(0)) + (std::string_view(op_.op->name) == "PACK" ? 1 : 0);
    if (number("axis") >= -limit && number("axis") < limit) return;
    fault("axis", std::to_string(number("axis")),
          "-" + std::to_string(limit) + " to " + std::to_string(limit - 1) + " for " +
              input_text(graph_, op_, 0));
  }

  void numbers() {
    for (const char* name :
         {"stride_w", "stride_h", "dilation_w_factor", "dilation_h_factor", "depth_multiplier"}) {
      if (has(name) && number(name) < 1) fault(name, std::to_string(number(name)), "1 or more");
    }
    for (const char* name : {"beta", "epsilon"}) {
      if (!has(name)) continue;
      const float value = option(op_, name, 0.0f);
      const bool fits = std::isfinite(value) && (value > 0 || (value == 0 && name[0] == 'e'));
      if (!fits) fault(name, std::to_string(value), "a finite positive number");
    }
    if (has("alpha") && !std::isfinite(option(op_, "alpha", 0.0f)))
      fault("alpha", "not finite", "a finite number");
  }

  void same_dtype(const char* name, const Tensor* t, const std::string& operand) {
    if (!has(name) || !t || number(name) == static_cast<int64_t>(t->dtype)) return;
    fault(name, name_of(static_cast<DType>(number(name))), name_of(t->dtype) + ", the dtype of " + operand);
  }

  void dtypes() {
    same_dtype("in_data_type", input(graph_, op_, 0), "the input");
    for (const char* name : {"out_data_type", "output_type", "out_type"}) {
      same_dtype(name, output(graph_, op_, 0), "the output");
    }
  }

  void activation() {
    const char* name = "fused_activation_function";
    const Tensor* y = output(graph_, op_, 0);
    const int64_t value = has(name) ? number(name) : 0;
    if (value == kSignBit) fault(name, "SIGN_BIT", "an activation that a runtime computes");
    if (value == 0 || !y) return;
    if (y->dtype == DType::BOOL) fault(name, std::to_string(value), "NONE, as the output is bool");
    if (value == kTanh && is_index(y->dtype))
      fault(name, "TANH", "another one, as the output is " + name_of(y->dtype));
  }

  void weights_format() {
    const char* name = "weights_format";
    if (!has(name) || number(name) == 0) return;
    if (number(name) != kShuffled16) return fault(name, "SHUFFLED4x16INT8", "DEFAULT or SHUFFLED16x1FLOAT32");
    for (size_t i : {size_t{0}, size_t{1}}) {
      const Tensor* t = input(graph_, op_, i);
      if (!t || t->dtype == DType::FLOAT32) continue;
      return fault(name, "SHUFFLED16x1FLOAT32",
                   "DEFAULT, as " + input_text(graph_, op_, i) + " is not float32");
    }
    const Tensor* w = input(graph_, op_, 1);
    if (w && (w->shape.empty() || w->shape[0] % 16 != 0))
      fault(name, "SHUFFLED16x1FLOAT32",
            "DEFAULT, or a multiple of 16 rows in " + input_text(graph_, op_, 1));
  }

  // RESHAPE's option, when present, is the output's shape; -1 is any one dimension.
  void new_shape() {
    const auto shape = option(op_, "new_shape", std::vector<int32_t>());
    const Tensor* out = output(graph_, op_, 0);
    if (shape.empty() || !out || is_dynamic(*out)) return;
    bool fits = shape.size() == out->shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] == -1 || shape[i] == out->shape[i];
    if (!fits) fault("new_shape", shape_text(shape), shape_text(out->shape) + ", the shape of the output");
  }

  const Model& model_;
  const Graph& graph_;
  const Operator& op_;
  const std::string where_;
  Faults& faults_;
};

}  // namespace

void check_options(const Model& model, const Graph& graph, Faults& faults) {
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    const Operator& op = graph.operators[i];
    if (op.op) OptionCheck(model, graph, op, operator_place(graph, i), faults).run();
  }
}

}  // namespace pyquant::circle
