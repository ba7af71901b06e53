// SPDX-License-Identifier: Apache-2.0
// Tensors between a host and the graphs of a bundle: a type, a shape and the bytes, in C order. A tensor that
// a graph stores as integers of a grid passes as float32.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace pyquant::host {

enum class Type : uint8_t { Float32, Int32, Int64, Bool };

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

  /// Zeros.
  static Tensor zeros(Type type, Shape shape);

  int64_t count() const { return count_of(shape); }
  float* floats() { return reinterpret_cast<float*>(bytes.data()); }
  const float* floats() const { return reinterpret_cast<const float*>(bytes.data()); }
  int32_t* ints() { return reinterpret_cast<int32_t*>(bytes.data()); }
  const int32_t* ints() const { return reinterpret_cast<const int32_t*>(bytes.data()); }
  /// Bytes of one element of the first dimension.
  size_t row_bytes() const;
};

/// int32 of `shape`.
Tensor int_tensor(const std::vector<int64_t>& values, Shape shape);
/// The tensors joined along `axis`; all other sizes are equal.
Tensor joined(const std::vector<const Tensor*>& parts, size_t axis);
/// Index `at` of `axis`, which is not there any more.
Tensor sliced(const Tensor& whole, size_t axis, int64_t at);

/// Graph input -> tensor, which the host keeps alive.
using Inputs = std::map<std::string, const Tensor*>;
/// Graph output -> tensor.
using Outputs = std::map<std::string, Tensor>;

}  // namespace pyquant::host
