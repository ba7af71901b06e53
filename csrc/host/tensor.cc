// SPDX-License-Identifier: Apache-2.0
#include "host/tensor.h"

namespace pyquant::host {

const char* type_name(Type type) {
  static const char* const names[] = {"float32", "int32", "int64", "bool"};
  return names[static_cast<size_t>(type)];
}

size_t type_size(Type type) {
  static const size_t sizes[] = {4, 4, 8, 1};
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
  Tensor made{type, std::move(shape), {}};
  made.bytes.resize(static_cast<size_t>(made.count()) * type_size(type));
  return made;
}

size_t Tensor::row_bytes() const { return shape.empty() || !shape[0] ? 0 : bytes.size() / shape[0]; }

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
  Shape shape = parts[0]->shape;
  shape[axis] = 0;
  for (const Tensor* part : parts) shape[axis] += part->shape[axis];
  Tensor made = Tensor::zeros(parts[0]->type, shape);
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
  const size_t line = static_cast<size_t>(whole.shape[axis]) * inner;
  for (size_t i = 0; inner && i < outer; ++i) {
    std::memcpy(made.bytes.data() + i * inner,
                whole.bytes.data() + i * line + static_cast<size_t>(at) * inner, inner);
  }
  return made;
}

}  // namespace pyquant::host
