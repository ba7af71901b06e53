// SPDX-License-Identifier: Apache-2.0
// Target onert: what onert 0.1.0 rejects, crashes on, or computes wrongly without an error, as measured
// (circle-and-runtimes.md, sections 2 and 3). Which dtypes each operator takes is in ops.def; here are the
// rules that need more than a dtype.
#include <algorithm>

#include "circle/check/check.h"

namespace pyquant::circle {
namespace {

class OnertCheck {
 public:
  OnertCheck(const Model& model, const Operator& op, std::string where, Faults& faults)
      : model_(model), op_(op), name_(op.op->name), where_(std::move(where)), faults_(faults) {}

  void run() {
    if (name_ == "SPLIT_V") return fault(Code::E_ONERT_WRONG, "gives zeros; write SLICE or SPLIT instead");
    if (op_.op->onert.empty())
      return fault(Code::E_ONERT_OPERATOR, "is not supported; lower it to other operators");
    if (name_ == "FULLY_CONNECTED") return fully_connected();
    if (name_ == "GATHER" && data() && is_ggml(data()->dtype)) return gather_ggml();
    dtypes();
    if (name_ == "BATCH_MATMUL") return batch_matmul();
    if (name_ == "RMS_NORM") return rms_norm();
    if (name_ == "ROPE") return rope();
    if (name_ == "CONV_2D" || name_ == "DEPTHWISE_CONV_2D") return convolution();
    if (name_ == "QUANTIZE") return quantize();
    if (name_ == "DEQUANTIZE") return dequantize();
    if (name_ == "CONCATENATION") return concatenation();
    if (name_ == "PAD" || name_ == "GATHER") return one_qparams();
  }

 private:
  void fault(Code code, const std::string& message) { faults_.add(code, where_, message); }

  // Roles a and c are data here: CAST, SHAPE and conversions have nothing else.
  bool is_data(char role) const { return role == 'x' || role == 'a'; }

  const Tensor* data() const {
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      if (is_data(op_.op->input(i).role)) return input(model_, op_, i);
    }
    return nullptr;
  }

  bool runs(const Tensor& t) const {
    const DTypeInfo* type = info(t.dtype);
    return type && op_.op->onert.find(type->letter) != std::string_view::npos;
  }

  void dtypes() {
    const auto judge = [&](const Tensor* t, char role, const std::string& operand) {
      if (!t || !is_data(role) || runs(*t)) return false;
      fault(Code::E_ONERT_DTYPE,
            operand + " is not computed correctly; dequantize before, or use another dtype");
      return true;
    };
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      if (judge(input(model_, op_, i), op_.op->input(i).role, input_text(model_, op_, i))) return;
    }
    for (size_t i = 0; i < op_.outputs.size(); ++i) {
      if (judge(output(model_, op_, i), op_.op->output(i).role, output_text(model_, op_, i))) return;
    }
  }

  static bool per_channel(const Tensor& t) { return t.quant && t.quant->scale.size() > 1; }

  void fully_connected() {
    const Tensor* x = data();
    const Tensor* w = input(model_, op_, 1);
    const Tensor* y = output(model_, op_, 0);
    if (!x || !w || !y) return;
    const std::string weights = input_text(model_, op_, 1);
    if (x->dtype == DType::FLOAT32) {
      const bool known = w->dtype == DType::FLOAT32 || w->dtype == DType::INT8 || is_ggml(w->dtype);
      if (!known) {
        return fault(Code::E_ONERT_WRONG,
                     weights +
                         ": read as other bytes than they are; with float32 data use float32, "
                         "per-tensor int8, ggml_q4_0 or ggml_q8_0 weights");
      }
      if (is_ggml(w->dtype)) {
        if (op_.inputs.size() > 2 && op_.inputs[2] != -1)
          fault(Code::E_ONERT_BIAS, "supports no bias with GGML weights; ADD it");
        if (x->shape.size() != 2)
          fault(Code::E_ONERT_RANK, "aborts on GGML weights unless the data has rank 2; RESHAPE it");
        if (!w->shape.empty() && w->shape.back() % 32 != 0)
          fault(Code::E_ONERT_RANK, weights + ": rows must be blocks of 32");
      }
    } else if (x->dtype == DType::UINT8) {
      if (w->dtype != DType::UINT8) {
        return fault(Code::E_ONERT_WRONG, weights + ": with uint8 data only uint8 weights are right");
      }
    } else {
      return fault(Code::E_ONERT_DTYPE,
                   input_text(model_, op_, 0) + ": not supported; expected float32 or uint8");
    }
    if (per_channel(*w)) {
      fault(Code::E_ONERT_WRONG,
            weights + ": quantized per channel, but the first scale is used for all; use per tensor");
    }
    if (y->shape.size() != 2) {
      fault(Code::E_ONERT_RANK,
            "gives a result of rank 2 for any keep_num_dims; write rank 2 and RESHAPE after it");
    }
  }

  void gather_ggml() {
    const Tensor* index = input(model_, op_, 1);
    if (data()->dtype != DType::GGML_Q4_0 || (index && index->dtype != DType::INT32)) {
      fault(Code::E_ONERT_DTYPE, "of a GGML table wants ggml_q4_0 and int32 indices");
    }
    int64_t rows = 1;
    for (size_t i = 0; index && i + 1 < index->shape.size(); ++i) rows *= index->shape[i];
    if (rows != 1) {
      fault(Code::E_ONERT_WRONG, input_text(model_, op_, 1) +
                                     ": of a GGML table only the first row of indices is gathered; RESHAPE "
                                     "them to one dimension");
    }
  }

  void batch_matmul() {
    const Tensor* rhs = input(model_, op_, 1);
    if (rhs && rhs->dtype != DType::FLOAT32)
      fault(Code::E_ONERT_DTYPE, input_text(model_, op_, 1) + ": expected float32");
    if (is_constant_input(model_, op_, 0)) {
      fault(Code::E_ONERT_CONSTANT, "the left operand is a constant; swap the operands into FULLY_CONNECTED");
    }
    const Tensor* out = output(model_, op_, 0);
    if (out && out->shape.size() > 4)
      fault(Code::E_ONERT_RANK, "supports rank 2 to 4, the output has rank " + rank(*out));
  }

  void rms_norm() {
    const Tensor* x = data();
    if (x && x->shape.size() != 3 && x->shape.size() != 4) {
      fault(Code::E_ONERT_RANK,
            "supports rank 3 or 4, the input has rank " + rank(*x) + "; RESHAPE it or use MUL, MEAN, RSQRT");
    }
  }

  void rope() {
    const Tensor* table = input(model_, op_, 1);
    const bool one_row = table && table->shape.size() == 4 && table->shape[2] == 1;
    if (!one_row || option<int64_t>(op_, "mode", 0) != 0) {
      fault(Code::E_ONERT_WRONG,
            "uses the first row of its tables for every position, and knows GPT_NEOX only; "
            "write the rotation with MUL, NEG, ADD");
    }
  }

  void convolution() {
    if (op_.inputs.size() > 2 && op_.inputs[2] == -1) fault(Code::E_ONERT_BIAS, "wants a bias; pass zeros");
  }

  void quantize() {
    const Tensor* from = input(model_, op_, 0);
    const Tensor* to = output(model_, op_, 0);
    if (!from || !to) return;
    if (is_float(from->dtype) && to->dtype == DType::INT8) {
      fault(Code::E_ONERT_WRONG, "float32 to int8 clamps negative values to 0; use uint8");
    } else if (from->dtype == to->dtype) {
      fault(Code::E_ONERT_DTYPE,
            "from " + name_of(from->dtype) + " to itself is not supported; DEQUANTIZE between");
    }
  }

  void dequantize() {
    const Tensor* from = input(model_, op_, 0);
    if (from && per_channel(*from)) fault(Code::E_ONERT_WRONG, "uses the first scale for every channel");
  }

  void concatenation() {
    if (data() && data()->dtype == DType::INT8) one_qparams();
  }

  void one_qparams() {
    const Tensor* out = output(model_, op_, 0);
    for (size_t i = 0; out && i < op_.inputs.size(); ++i) {
      const Tensor* t = input(model_, op_, i);
      if (!t || op_.op->input(i).role != 'x' || same_qparams(*t, *out)) continue;
      fault(Code::E_ONERT_QPARAMS, input_text(model_, op_, i) + " has " + qparams_text(*t) + ", the output " +
                                       qparams_text(*out) + "; join them with QUANTIZE");
    }
  }

  static std::string rank(const Tensor& t) { return std::to_string(t.shape.size()); }

  const Model& model_;
  const Operator& op_;
  const std::string_view name_;
  const std::string where_;
  Faults& faults_;
};

void check_io(const Model& model, Faults& faults) {
  const auto look = [&](const std::vector<int32_t>& list) {
    for (int32_t index : list) {
      if (!model.has_tensor(index)) continue;
      const Tensor& t = model.tensors[static_cast<size_t>(index)];
      const DTypeInfo* type = info(t.dtype);
      const bool passes = type && std::string_view("filbua").find(type->letter) != std::string_view::npos;
      if (passes && t.shape.size() <= 6) continue;
      faults.add(Code::E_ONERT_IO, tensor_place(model, index),
                 name_of(t.dtype) + " " + shape_text(t.shape) +
                     ": expected float32, int32, int64, bool, uint8 or int8 of rank 6 or less");
    }
  };
  look(model.inputs);
  look(model.outputs);
}

}  // namespace

void check_onert(const Model& model, Faults& faults) {
  for (size_t i = 0; i < model.buffers.size(); ++i) {
    if (!model.buffers[i].external) continue;
    faults.add(Code::E_ONERT_EXTERNAL, "buffers[" + std::to_string(i) + "]",
               "lies outside the flatbuffer, on which onert crashes; write with --layout inline");
    break;
  }
  check_io(model, faults);
  for (size_t i = 0; i < model.operators.size(); ++i) {
    const Operator& op = model.operators[i];
    if (op.op) OnertCheck(model, op, operator_place(model, i), faults).run();
  }
}

}  // namespace pyquant::circle
