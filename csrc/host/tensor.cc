// SPDX-License-Identifier: Apache-2.0
#include "host/tensor.h"

namespace pyquant::host {

const char* type_name(Type type) {
  static const char* const names[] = {"float32", "int32", "int64", "bool", "int8", "uint8", "int16"};
  return names[static_cast<size_t>(type)];
}

size_t type_size(Type type) {
  static const size_t sizes[] = {4, 4, 8, 1, 1, 1, 2};
  return sizes[static_cast<size_t>(type)];
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  }
  return text + "]";
}

int64_t count_of(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

Tensor Tensor::zeros(Type type, Shape shape) {
  Tensor made;
  made.type = type;
  made.shape = std::move(shape);
  made.bytes.resize(static_cast<size_t>(made.count()) * type_size(type));
  return made;
}

size_t Tensor::row_bytes() const { return shape.empty() || !shape[0] ? 0 : bytes.size() / shape[0]; }

bool Tensor::is_like(const Tensor& other) const {
  return type == other.type && grid.scale == other.grid.scale && grid.zero_point == other.grid.zero_point;
}

Tensor Tensor::zeros_like(Shape other) const {
  Tensor made = zeros(type, std::move(other));
  made.grid = grid;
  if (type == Type::Int16) {
    const auto zero = static_cast<int16_t>(grid.zero_point);
    for (size_t i = 0; zero && i < made.bytes.size(); i += 2) std::memcpy(made.bytes.data() + i, &zero, 2);
  } else if (type >= Type::Int8 && grid.zero_point) {
    std::memset(made.bytes.data(), grid.zero_point & 0xff, made.bytes.size());
  }
  return made;
}

namespace {

template <class T>
void dequantize_all(const Tensor& from, float* out) {
  for (size_t i = 0; i < static_cast<size_t>(from.count()); ++i) {
    T q;
    std::memcpy(&q, from.bytes.data() + i * sizeof(T), sizeof(T));
    out[i] = dequantize_value(q, from.grid);
  }
}

template <class T>
void quantize_all(const float* from, size_t count, ScaleZeroPoint grid, Grid limits, uint8_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const auto q = static_cast<T>(quantize_value(from[i], grid, limits));
    std::memcpy(out + i * sizeof(T), &q, sizeof(T));
  }
}

}  // namespace

Tensor Tensor::as_floats() const {
  if (type < Type::Int8) return *this;
  Tensor made = zeros(Type::Float32, shape);
  if (type == Type::Int8) dequantize_all<int8_t>(*this, made.floats());
  if (type == Type::UInt8) dequantize_all<uint8_t>(*this, made.floats());
  if (type == Type::Int16) dequantize_all<int16_t>(*this, made.floats());
  return made;
}

void quantize(const Tensor& real, Type type, ScaleZeroPoint grid, bool narrow, std::vector<uint8_t>& out) {
  const Tensor floats = real.type == Type::Float32 ? Tensor() : real.as_floats();
  const float* from = real.type == Type::Float32 ? real.floats() : floats.floats();
  const auto count = static_cast<size_t>(real.count());
  const int32_t less = narrow ? 1 : 0;
  out.resize(count * type_size(type));
  if (type == Type::Int8) quantize_all<int8_t>(from, count, grid, {-128 + less, 127}, out.data());
  if (type == Type::UInt8) quantize_all<uint8_t>(from, count, grid, {0, 255}, out.data());
  if (type == Type::Int16) quantize_all<int16_t>(from, count, grid, {-32768 + less, 32767}, out.data());
}

Tensor int_tensor(const std::vector<int64_t>& values, Shape shape) {
  Tensor made = Tensor::zeros(Type::Int32, std::move(shape));
  for (size_t i = 0; i < values.size(); ++i) made.ints()[i] = static_cast<int32_t>(values[i]);
  return made;
}

namespace {

/// Bytes of everything behind `axis`, and how often that comes.
void strides(const Tensor& tensor, size_t axis, size_t& outer, size_t& inner) {
  outer = 1;
  for (size_t i = 0; i < axis; ++i) outer *= static_cast<size_t>(tensor.shape[i]);
  inner = type_size(tensor.type);
  for (size_t i = axis + 1; i < tensor.shape.size(); ++i) inner *= static_cast<size_t>(tensor.shape[i]);
}

}  // namespace

Tensor joined(const std::vector<const Tensor*>& parts, size_t axis) {
  for (const Tensor* part : parts) {
    if (part->is_like(*parts[0])) continue;
    std::vector<Tensor> floats;
    for (const Tensor* each : parts) floats.push_back(each->as_floats());
    std::vector<const Tensor*> pointers;
    for (const Tensor& each : floats) pointers.push_back(&each);
    return joined(pointers, axis);
  }
  Shape shape = parts[0]->shape;
  shape[axis] = 0;
  for (const Tensor* part : parts) shape[axis] += part->shape[axis];
  Tensor made = Tensor::zeros(parts[0]->type, shape);
  made.grid = parts[0]->grid;
  size_t outer = 0, inner = 0, filled = 0;
  strides(made, axis, outer, inner);
  const size_t line = static_cast<size_t>(shape[axis]) * inner;
  for (const Tensor* part : parts) {
    const size_t bytes = static_cast<size_t>(part->shape[axis]) * inner;
    for (size_t i = 0; bytes && i < outer; ++i) {
      std::memcpy(made.bytes.data() + i * line + filled, part->bytes.data() + i * bytes, bytes);
    }
    filled += bytes;
  }
  return made;
}

Tensor sliced(const Tensor& whole, size_t axis, int64_t at) {
  size_t outer = 0, inner = 0;
  strides(whole, axis, outer, inner);
  Shape shape = whole.shape;
  shape.erase(shape.begin() + static_cast<std::ptrdiff_t>(axis));
  Tensor made = Tensor::zeros(whole.type, shape);
  made.grid = whole.grid;
  const size_t line = static_cast<size_t>(whole.shape[axis]) * inner;
  for (size_t i = 0; inner && i < outer; ++i) {
    std::memcpy(made.bytes.data() + i * inner,
                whole.bytes.data() + i * line + static_cast<size_t>(at) * inner, inner);
  }
  return made;
}

}  // namespace pyquant::host
