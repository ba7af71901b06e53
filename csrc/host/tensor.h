// SPDX-License-Identifier: Apache-2.0
// Tensors between a host and the graphs of a bundle: a type, a shape and the bytes, in C order. Real numbers
// are float32, or integers of a grid as a graph stores them, which go from graph to graph without a change.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "pyquant/qparams.h"

namespace pyquant::host {

enum class Type : uint8_t { Float32, Int32, Int64, Bool, Int8, UInt8, Int16 };

/// Whether elements are real numbers: float32, or integers of a grid.
inline bool is_real(Type type) { return type == Type::Float32 || type >= Type::Int8; }

/// "float32" ...
const char* type_name(Type type);
/// Bytes of one element.
size_t type_size(Type type);

using Shape = std::vector<int64_t>;

/// "[1, 2, 3]"
std::string shape_text(const Shape& shape);
/// Product of the sizes.
int64_t count_of(const Shape& shape);

struct Tensor {
  Type type = Type::Float32;
  Shape shape;
  std::vector<uint8_t> bytes;
  ScaleZeroPoint grid{1, 0};  // of Int8, UInt8, Int16

  /// Zeros.
  static Tensor zeros(Type type, Shape shape);

  int64_t count() const { return count_of(shape); }
  float* floats() { return reinterpret_cast<float*>(bytes.data()); }
  const float* floats() const { return reinterpret_cast<const float*>(bytes.data()); }
  int32_t* ints() { return reinterpret_cast<int32_t*>(bytes.data()); }
  const int32_t* ints() const { return reinterpret_cast<const int32_t*>(bytes.data()); }
  /// Bytes of one element of the first dimension.
  size_t row_bytes() const;
  /// Whether elements mean the same in both: type, and grid of integers.
  bool is_like(const Tensor& other) const;
  /// All zeros, of this type and grid: the bytes of a zero are those of the zero point.
  Tensor zeros_like(Shape other) const;
  /// Real numbers as float32.
  Tensor as_floats() const;
};

/// Integers of a grid from real numbers, by the contract of pyquant/qparams.h; `narrow`: without a signed
/// type's lowest value.
void quantize(const Tensor& real, Type type, ScaleZeroPoint grid, bool narrow, std::vector<uint8_t>& out);

/// int32 of `shape`.
Tensor int_tensor(const std::vector<int64_t>& values, Shape shape);
/// The tensors joined along `axis`, as float32 where their grids differ; all other sizes are equal.
Tensor joined(const std::vector<const Tensor*>& parts, size_t axis);
/// Index `at` of `axis`, which is not there any more.
Tensor sliced(const Tensor& whole, size_t axis, int64_t at);

/// Graph input -> tensor, which the host keeps alive.
using Inputs = std::map<std::string, const Tensor*>;
/// Graph output -> tensor.
using Outputs = std::map<std::string, Tensor>;

}  // namespace pyquant::host
