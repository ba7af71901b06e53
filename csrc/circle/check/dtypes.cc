// SPDX-License-Identifier: Apache-2.0
// Pass 3: the dtypes of each operator's operands, against ops.def and against each other.
#include "circle/check/check.h"

namespace pyquant::circle {
namespace {

class DtypeCheck {
 public:
  DtypeCheck(const Model& model, const Graph& graph, const Operator& op, std::string where, Faults& faults)
      : model_(model), graph_(graph), op_(op), where_(std::move(where)), faults_(faults) {}

  void run() {
    const bool convert = op_.op->kind == OpKind::Convert;
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      if (const Tensor* t = input(graph_, op_, i))
        role(op_.op->input(i).role, *t, input_text(graph_, op_, i));
    }
    for (size_t i = 0; i < op_.outputs.size(); ++i) {
      if (const Tensor* t = output(graph_, op_, i))
        role(op_.op->output(i).role, *t, output_text(graph_, op_, i), true);
    }
    const Tensor* from = input(graph_, op_, 0);
    const Tensor* to = output(graph_, op_, 0);
    if (convert && from && to) conversion(*from, *to);
  }

 private:
  void fault(const std::string& operand, const std::string& expected) {
    faults_.add(Code::E_OPERAND_DTYPE, where_, operand + ": expected " + expected);
  }

  // What CAST reads and writes: no blocks, no complex numbers.
  static bool is_number(DType dtype) {
    const DTypeInfo* type = info(dtype);
    return type && type->letter != '?' && !is_ggml(dtype);
  }

  bool takes(char family) const { return op_.op->dtypes.find(family) != std::string_view::npos; }

  bool allowed(DType dtype) const {
    return (is_float(dtype) && takes('f')) || (is_quantized(dtype) && takes('q')) ||
           (is_index(dtype) && takes('i')) || (dtype == DType::BOOL && takes('b'));
  }

  std::string allowed_text() const {
    std::string text;
    const auto add = [&text](const char* family) {
      text += (text.empty() ? "" : ", ") + std::string(family);
    };
    if (takes('f')) add("float");
    if (takes('q')) add("a quantized type");
    if (takes('i')) add("int32 or int64");
    if (takes('b')) add("bool");
    return text;
  }

  void role(char role, const Tensor& t, const std::string& operand, bool is_output = false) {
    switch (role) {
      case 'x':
        return data(t, operand, is_output);
      case 'w':
        return weight(t, operand);
      case 'b':
        return bias(t, operand);
      case 'i':
        if (!is_index(t.dtype)) fault(operand, "int32 or int64");
        return;
      case 'c':
        if (t.dtype != DType::BOOL) fault(operand, "bool");
        return;
      default:
        return;
    }
  }

  void data(const Tensor& t, const std::string& operand, bool is_output) {
    // A GGML table decodes while it gathers: its output is float.
    const bool ggml_table = op_.code == 36 && is_ggml(t.dtype) && !is_output;
    if (!ggml_table && !allowed(t.dtype)) return fault(operand, allowed_text());
    const DType dtype = ggml_table ? DType::FLOAT32 : t.dtype;
    if (!has_data_) {
      has_data_ = true;
      data_ = dtype;
    } else if (dtype != data_) {
      fault(operand, name_of(data_) + ", as the operands before it (join dtypes with QUANTIZE)");
    }
  }

  void weight(const Tensor& t, const std::string& operand) {
    if (!has_data_) return;
    if (is_float(data_)) {
      const bool fits = t.dtype == data_ || is_quantized(t.dtype) || is_ggml(t.dtype);
      if (!fits) fault(operand, name_of(data_) + ", or quantized weights");
    } else if (!is_quantized(t.dtype)) {
      fault(operand, "a quantized type, as the data is " + name_of(data_));
    }
  }

  void bias(const Tensor& t, const std::string& operand) {
    if (!has_data_) return;
    if (is_float(data_)) {
      if (t.dtype != data_) fault(operand, name_of(data_) + ", as the data");
    } else if (data_ == DType::INT16) {
      if (!is_index(t.dtype)) fault(operand, "int64 (or int32), as the data is int16");
    } else if (t.dtype != DType::INT32) {
      fault(operand, "int32, as the data is " + name_of(data_));
    }
  }

  void conversion(const Tensor& from, const Tensor& to) {
    const std::string name = op_.op->name;
    if (name == "QUANTIZE") {
      if (!is_float(from.dtype) && !is_quantized(from.dtype)) {
        fault(input_text(graph_, op_, 0), "float or a quantized type");
      }
      if (!is_quantized(to.dtype)) fault(output_text(graph_, op_, 0), "a quantized type");
    } else if (name == "DEQUANTIZE") {
      if (!is_quantized(from.dtype) && from.dtype != DType::FLOAT16) {
        fault(input_text(graph_, op_, 0), "a quantized type");
      }
      if (!is_float(to.dtype)) fault(output_text(graph_, op_, 0), "float");
    } else {
      if (!is_number(from.dtype)) fault(input_text(graph_, op_, 0), "numbers or bool");
      if (!is_number(to.dtype)) fault(output_text(graph_, op_, 0), "numbers or bool");
    }
  }

  const Model& model_;
  const Graph& graph_;
  const Operator& op_;
  const std::string where_;
  Faults& faults_;
  bool has_data_ = false;
  DType data_ = DType::FLOAT32;
};

}  // namespace

void check_dtypes(const Model& model, const Graph& graph, Faults& faults) {
  for (size_t i = 0; i < graph.operators.size(); ++i) {
    const Operator& op = graph.operators[i];
    if (op.op) DtypeCheck(model, graph, op, operator_place(graph, i), faults).run();
  }
}

}  // namespace pyquant::circle
