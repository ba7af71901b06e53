// SPDX-License-Identifier: Apache-2.0
// Operands as the elementwise kernels take them: float16 and bfloat16 as float32, 4-bit integers as 8-bit
// ones. Constants are converted when the step is prepared, other tensors in scratch memory when it runs.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "circle/ops/step.h"
#include "kernels/channels.h"
#include "kernels/fused.h"
#include "pyquant/qparams.h"

namespace pyquant::circle {

/// What a kernel sees of a tensor of this dtype: FLOAT32 for the 16-bit floats, INT8 or UINT8 for 4 bits.
DType kernel_dtype(DType dtype);
/// The integers of a quantized dtype (4-bit ones: those of 4 bits).
Grid grid_of(DType dtype);
inline ScaleZeroPoint qparams_of(const TensorArg& t) {
  return {t.scale(), static_cast<int32_t>(t.zero_point())};
}

class InOperand {
 public:
  /// Input i of the operator.
  InOperand(Builder& b, size_t i) : InOperand(b, b.in(i)) {}
  /// Any tensor: an output that is read again.
  InOperand(Builder& b, const TensorArg& arg);

  DType dtype() const { return dtype_; }
  int64_t elements() const { return arg_.elements; }
  ScaleZeroPoint qparams() const { return qparams_of(arg_); }
  /// Its elements for the kernel; fills the scratch memory where they need converting.
  template <class T>
  const T* read(const Frame& frame) const {
    return static_cast<const T*>(read_bytes(frame));
  }

 private:
  const void* read_bytes(const Frame& frame) const;

  TensorArg arg_;
  DType dtype_;
  std::optional<size_t> scratch_;
  std::shared_ptr<const std::vector<uint64_t>> constant_;  // converted, or moved to where its type may lie
};

class OutOperand {
 public:
  OutOperand(Builder& b, size_t k);

  DType dtype() const { return dtype_; }
  int64_t elements() const { return arg_.elements; }
  ScaleZeroPoint qparams() const { return qparams_of(arg_); }
  Grid grid() const { return grid_of(arg_.dtype()); }
  /// Where the kernel writes.
  template <class T>
  T* write(const Frame& frame) const {
    return scratch_ ? frame.scratch<T>(*scratch_) : frame.out<T>(arg_);
  }
  /// After the kernel: converts what it wrote into the tensor.
  void finish(const Frame& frame) const;

 private:
  TensorArg arg_;
  DType dtype_;
  std::optional<size_t> scratch_;
};

/// A weight, gamma, beta or table of any dtype, or quantized data, of any scales, as the doubles that its
/// values are.
class RealOperand {
 public:
  RealOperand(Builder& b, size_t i);

  int64_t elements() const { return arg_.elements; }
  /// The largest magnitude that its integers can have.
  double most() const;
  const double* read(const Frame& frame) const;

 private:
  TensorArg arg_;
  size_t scratch_ = 0;
  std::shared_ptr<const std::vector<double>> constant_;
};

/// How real numbers become the integers of a quantized tensor: by channel, limited by an activation.
std::vector<kernels::Rounder> channel_rounders(const TensorArg& y, kernels::Fused fused);

/// A quantized output with a grid for each channel (or one), for kernels that round element by element.
class ChannelResult {
 public:
  ChannelResult(Builder& b, size_t k, kernels::Fused fused = kernels::Fused::none);

  int64_t elements() const { return out_.elements(); }
  kernels::ChannelOutput at(const Frame& frame) const;
  /// As OutOperand's.
  void finish(const Frame& frame) const { out_.finish(frame); }

 private:
  OutOperand out_;
  int64_t inner_ = 1;
  std::shared_ptr<const std::vector<kernels::Rounder>> rounders_;
};

/// A step of real numbers: compute(frame, y) fills y, the real numbers of output 0, each of which is then
/// rounded to the grid of its channel.
Step real_step(Builder& b, kernels::Fused fused, std::function<void(const Frame&, double*)> compute);

/// Calls use(T{}) with the element type of a quantized kernel dtype.
template <class Use>
auto with_integer(DType kernel_dtype, Use use) {
  if (kernel_dtype == DType::INT8) return use(int8_t{});
  if (kernel_dtype == DType::UINT8) return use(uint8_t{});
  return use(int16_t{});
}

/// Calls use(T{}) with the element type of a kernel dtype: float, a quantized one, int32_t or int64_t.
template <class Use>
auto with_number(DType kernel_dtype, Use use) {
  if (kernel_dtype == DType::FLOAT32) return use(float{});
  if (kernel_dtype == DType::INT32) return use(int32_t{});
  if (kernel_dtype == DType::INT64) return use(int64_t{});
  return with_integer(kernel_dtype, use);
}

/// The values of an int32 or int64 operand that is known when the step is prepared; nothing otherwise.
std::optional<std::vector<int64_t>> known_ints(const TensorArg& arg);

/// Whether any data (weights, indices and tables are none) has a scale for each channel: kernels that compute
/// integers of one grid do not take it.
bool any_per_channel(const Builder& b);

/// The option fused_activation_function, of which the checker refuses SIGN_BIT.
kernels::Fused fused_of(const Builder& b);

}  // namespace pyquant::circle
