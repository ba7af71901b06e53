// SPDX-License-Identifier: Apache-2.0
// One operator made ready to run: operands with their concrete shapes and places, scratch memory, and the
// function that computes it. Steps are made once for a graph (and its shapes), and allocate nothing when they
// run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "circle/ir.h"
#include "circle/ops/view.h"
#include "kernels/threads.h"
#include "pyquant/status.h"

namespace pyquant::circle {

/// A tensor as a step sees it.
struct TensorArg {
  const Tensor* tensor = nullptr;  // nullptr: the operator goes without it
  size_t index = 0;                // in the graph; the key into Frame
  std::vector<int32_t> shape;      // concrete: nothing open
  int64_t elements = 0;
  const uint8_t* constant = nullptr;  // its bytes, where they are the file's (maybe aligned to 4 bytes only)

  explicit operator bool() const { return tensor != nullptr; }
  DType dtype() const { return tensor->dtype; }
  /// Of a tensor with one scale; 1 and 0 where there are none.
  float scale() const { return tensor->quant ? tensor->quant->scale[0] : 1.0f; }
  int64_t zero_point() const { return tensor->quant ? tensor->quant->zero_point[0] : 0; }
  bool per_channel() const { return tensor->quant && tensor->quant->scale.size() > 1; }
  size_t rank() const { return shape.size(); }
};

/// What a step is given when it runs: where tensors are now, its scratch, the threads to use.
class Frame {
 public:
  Frame(uint8_t* const* data, uint8_t* scratch, kernels::Threads& threads)
      : data_(data), scratch_(scratch), threads_(threads) {}

  template <typename T = uint8_t>
  const T* in(const TensorArg& operand) const {
    return reinterpret_cast<const T*>(operand.constant ? operand.constant : data_[operand.index]);
  }
  template <typename T = uint8_t>
  T* out(const TensorArg& operand) const {
    return reinterpret_cast<T*>(data_[operand.index]);
  }
  /// At an offset that Builder::scratch gave, aligned to 64 bytes.
  template <typename T = uint8_t>
  T* scratch(size_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  kernels::Threads& threads() const { return threads_; }

 private:
  uint8_t* const* data_;  // by tensor of the graph
  uint8_t* scratch_;
  kernels::Threads& threads_;
};

struct Step {
  /// Fails only for values that the operator cannot take (an index beyond a table); the message names them.
  std::function<Status(const Frame&)> run;
  int64_t multiply_adds = 0;  // for --profile
};

/// What steps of one file share, by key: tables of functions of one value, for instance.
class SharedData {
 public:
  /// The object of this key; `make` makes it the first time. Keys of different types differ (a prefix each).
  template <typename T, typename Make>
  std::shared_ptr<T> get(const std::string& key, const Make& make) {
    std::shared_ptr<void>& entry = entries_[key];
    if (!entry) entry = std::shared_ptr<T>(make());
    return std::static_pointer_cast<T>(entry);
  }

 private:
  std::map<std::string, std::shared_ptr<void>> entries_;
};

/// What `prepare` is given: the operator, its operands, and where to ask for memory.
class Builder : public OpView {
 public:
  Builder(const Model& model, const Graph& graph, const Operator& op, std::vector<TensorArg> inputs,
          std::vector<TensorArg> outputs, SharedData& shared)
      : OpView(model, graph, op), inputs_(std::move(inputs)), outputs_(std::move(outputs)), shared_(shared) {}

  /// Operands by position; an optional one that is not there is false.
  const TensorArg& in(size_t i) const { return i < inputs_.size() ? inputs_[i] : none_; }
  const TensorArg& out(size_t k) const { return outputs_[k]; }
  /// Bytes of scratch for this step, as an offset for Frame::scratch.
  size_t scratch(int64_t bytes);
  size_t scratch_bytes() const { return scratch_; }
  SharedData& shared() const { return shared_; }
  /// An error that names the operator: "this combination is not run".
  Fault unsupported(const std::string& what) const;

 private:
  std::vector<TensorArg> inputs_, outputs_;
  TensorArg none_;
  size_t scratch_ = 0;
  SharedData& shared_;
};

}  // namespace pyquant::circle
