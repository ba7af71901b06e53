// SPDX-License-Identifier: Apache-2.0
// What pyquant knows of one operator beyond its line in ops.def: the shapes that it gives, the rules of
// targets that need more than a dtype, and how it is run. One row an operator, in the file of its family.
//
// The checker compares a file's shapes with `infer`, the planner of csrc/run computes open shapes with it,
// and `prepare` chooses the kernel; so an operator means one thing in all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "circle/ir.h"
#include "circle/ops/step.h"
#include "circle/ops/view.h"
#include "pyquant/status.h"

namespace pyquant::circle {

using Shape = std::vector<int32_t>;

/// NumPy's broadcasting; nothing when the shapes do not fit.
std::optional<Shape> broadcast(const Shape& a, const Shape& b);
/// 0 <= axis < rank; counts from the end where it is negative; nothing when it is out of range.
std::optional<size_t> axis_of(int64_t axis, size_t rank);

/// Computes the output shapes of one operator from the shapes of its inputs. Every input that may not be
/// absent is there, with a shape that has a size (element_count), and counts are those of ops.def.
class Inference : public OpView {
 public:
  /// `shapes`: by tensor; those of inputs are read, those of outputs are what the file declares.
  Inference(const Model& model, const Graph& graph, const Operator& op, const std::vector<Shape>& shapes)
      : OpView(model, graph, op), shapes_(shapes), inferred_(op.outputs.size()) {}
  virtual ~Inference() = default;

  const Shape& shape(size_t i) const { return shapes_[static_cast<size_t>(op().inputs[i])]; }
  /// The shape of output k as the file declares it.
  const Shape& declared(size_t k) const { return shapes_[static_cast<size_t>(op().outputs[k])]; }
  int64_t elements(size_t i) const { return *element_count(shape(i)); }
  /// The values of an integer input, where they are known: those of a constant.
  virtual std::vector<int64_t> ints(size_t i) const;
  bool knows(size_t i) const { return !ints(i).empty() || elements(i) == 0; }

  /// Output k has this shape; `why` ends the sentence "expected output [2, 3], ..." where it does not.
  void set(size_t k, Shape shape, const char* why);
  /// Nothing is known of output k but what the file declares (it depends on values).
  void set_declared(size_t k) { inferred_[k] = declared(k); }
  /// Ends the sentence "...: expected ...".
  void fault(std::string expected) {
    if (fault_.empty()) fault_ = std::move(expected);
  }

  /// After `infer`: the first fault ("" when there is none), and the outputs' shapes.
  const std::string& fault() const { return fault_; }
  const std::vector<std::optional<Shape>>& inferred() const { return inferred_; }
  const char* why(size_t k) const { return why_.size() > k ? why_[k] : ""; }

 private:
  const std::vector<Shape>& shapes_;
  std::vector<std::optional<Shape>> inferred_;
  std::vector<const char*> why_;
  std::string fault_;
};

/// Finds what a target does not run, or runs otherwise.
class TargetCheck : public OpView {
 public:
  TargetCheck(const Model& model, const Graph& graph, const Operator& op,
              std::function<void(Code, std::string)> add)
      : OpView(model, graph, op), add_(std::move(add)) {}

  void fault(Code code, std::string message) const { add_(code, std::move(message)); }
  /// The first operand that is data (roles x and a).
  const Tensor* data() const;
  /// onert: every data operand has a dtype that ops.def lists for it; faults otherwise.
  void onert_dtypes() const;
  /// onert: the data inputs have the output's qparams.
  void onert_one_grid() const;

 private:
  std::function<void(Code, std::string)> add_;
};

/// Scale and zero point that ONE's verifier wants of an output.
struct FixedGrid {
  float scale;
  int64_t zero_point;
};

/// The output has the shape of input 0.
void infer_same(Inference& it);
/// The output has the shape that inputs 0 and 1 broadcast to.
void infer_broadcast(Inference& it);

struct OpRow {
  std::string_view name;
  void (*infer)(Inference&);
  Result<Step> (*prepare)(Builder&) = nullptr;
  /// Instead of TargetCheck::onert_dtypes, which this calls itself where it applies.
  void (*onert)(const TargetCheck&) = nullptr;
  /// Of operators with LuciRule::Fixed: the output's grid, for uint8 (true) or int16.
  FixedGrid (*fixed)(bool narrow) = nullptr;
  /// The output is input 0 under another shape: where same_bytes() holds too, it may share its memory.
  bool alias = false;
  /// Of operators with LuciRule::Weights: the dimension of the weights that is the output's channels.
  int32_t channel_axis = 0;
};

// The families, one file each.
std::vector<OpRow> linear_rows();   // FULLY_CONNECTED, CONV_2D, DEPTHWISE_CONV_2D, BATCH_MATMUL
std::vector<OpRow> norm_rows();     // RMS_NORM, INSTANCE_NORM, ROPE
std::vector<OpRow> binary_rows();   // ADD ... FLOOR_MOD
std::vector<OpRow> unary_rows();    // NEG ... LEAKY_RELU
std::vector<OpRow> softmax_rows();  // SOFTMAX, LOG_SOFTMAX
std::vector<OpRow> reduce_rows();   // MEAN ... CUMSUM
std::vector<OpRow> order_rows();    // ARG_MAX, ARG_MIN, TOPK_V2
std::vector<OpRow> shape_rows();    // RESHAPE, SQUEEZE, EXPAND_DIMS, SHAPE, TRANSPOSE
std::vector<OpRow> join_rows();     // CONCATENATION, SPLIT, SPLIT_V, PACK, UNPACK
std::vector<OpRow> slice_rows();    // SLICE, STRIDED_SLICE, PAD, PADV2, BROADCAST_TO, TILE
std::vector<OpRow> gather_rows();   // GATHER, GATHER_ND, SELECT, SELECT_V2, ONE_HOT, FILL, RANGE
std::vector<OpRow> convert_rows();  // CAST, QUANTIZE, DEQUANTIZE
std::vector<OpRow> compare_rows();  // EQUAL ... LOGICAL_NOT

/// Whether a tensor keeps its bytes under another shape: one type, and the same grid for each element in
/// order (or none on one of both sides: plain integers).
bool same_bytes(const TensorArg& from, const TensorArg& to);

/// The row of an operator of ops.def; every one has a row with `infer`.
const OpRow& row_of(const OpInfo& op);

}  // namespace pyquant::circle
