// SPDX-License-Identifier: Apache-2.0
// The table of element types, expanded, and the sizes that follow from it.
#include "circle/dtype.h"

#include <cstring>

namespace pyquant::circle {
namespace {

constexpr DTypeInfo kTypes[] = {
#define PYQUANT_DTYPE(name, schema, value, letter, elements, bytes, lowest, highest) \
  {DType::schema, #name, letter, elements, bytes, lowest, highest},
#include "circle/dtypes.def"
#undef PYQUANT_DTYPE
};

}  // namespace

const DTypeInfo* info(DType dtype) {
  for (const DTypeInfo& type : kTypes) {
    if (type.dtype == dtype) return &type;
  }
  return nullptr;
}

const DTypeInfo* dtype_by_name(std::string_view name) {
  for (const DTypeInfo& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

const DTypeInfo* dtype_by_letter(char letter) {
  for (const DTypeInfo& type : kTypes) {
    if (letter == type.letter) return &type;
  }
  return nullptr;
}

std::string name_of(DType dtype) {
  const DTypeInfo* type = info(dtype);
  return type ? type->name : "type(" + std::to_string(static_cast<int>(dtype)) + ")";
}

std::string dtype_names() {
  std::string names;
  for (const DTypeInfo& type : kTypes) {
    if (type.block_elements == 0) continue;
    if (!names.empty()) names += ", ";
    names += type.name;
  }
  return names;
}

std::optional<int64_t> element_count(const std::vector<int32_t>& shape) {
  // 2^56 elements leave room for 16 bytes each, so that no later product overflows.
  constexpr int64_t kMost = int64_t{1} << 56;
  int64_t count = 1;
  bool empty = false;
  for (int32_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) {
      empty = true;
    } else {
      if (count > kMost / dim) return std::nullopt;
      count *= dim;
    }
  }
  return empty ? 0 : count;
}

std::optional<int64_t> byte_size(DType dtype, const std::vector<int32_t>& shape) {
  const DTypeInfo* type = info(dtype);
  const auto count = element_count(shape);
  if (!type || !count || type->block_elements == 0) return std::nullopt;
  return (*count + type->block_elements - 1) / type->block_elements * type->block_bytes;
}

std::vector<int64_t> read_ints(DType dtype, const uint8_t* bytes, int64_t count) {
  if (!is_index(dtype)) return {};
  std::vector<int64_t> values(static_cast<size_t>(count));
  const size_t width = dtype == DType::INT64 ? 8 : 4;
  for (size_t i = 0; i < values.size(); ++i) {
    int32_t narrow = 0;
    std::memcpy(width == 8 ? static_cast<void*>(&values[i]) : &narrow, bytes + i * width, width);
    if (width == 4) values[i] = narrow;
  }
  return values;
}

std::string shape_text(const std::vector<int32_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace pyquant::circle
