// SPDX-License-Identifier: Apache-2.0
// The element types of Circle tensors: their names, sizes and integer ranges, from the one table dtypes.def.
// Which operator takes which type is left to ops.def.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pyquant::circle {

/// The value of TensorType in the schema. A corrupt file may hold any byte; info() then returns nullptr.
enum class DType : int8_t {
#define PYQUANT_DTYPE(name, schema, value, letter, elements, bytes, lowest, highest) schema = value,
#include "circle/dtypes.def"
#undef PYQUANT_DTYPE
};

struct DTypeInfo {
  DType dtype;
  const char* name;
  char letter;         // in ops.def
  int block_elements;  // 0: the size is not known
  int block_bytes;
  int64_t lowest;   // of integer types
  int64_t highest;  // lowest == highest: not an integer type
};

const DTypeInfo* info(DType dtype);
const DTypeInfo* dtype_by_name(std::string_view name);
/// By the letter that ops.def uses.
const DTypeInfo* dtype_by_letter(char letter);
/// "uint8", or "type(99)" for a value that the schema does not have.
std::string name_of(DType dtype);
/// "float32, float16, ..." for messages.
std::string dtype_names();

inline bool is_float(DType d) { return d == DType::FLOAT32 || d == DType::FLOAT16 || d == DType::BFLOAT16; }
/// The types of quantized activations and weights.
inline bool is_quantized(DType d) {
  return d == DType::INT4 || d == DType::UINT4 || d == DType::INT8 || d == DType::UINT8 || d == DType::INT16;
}
inline bool is_index(DType d) { return d == DType::INT32 || d == DType::INT64; }
inline bool is_ggml(DType d) { return d == DType::GGML_Q4_0 || d == DType::GGML_Q8_0; }

/// Number of elements; nothing when a dimension is negative or the product does not fit.
std::optional<int64_t> element_count(const std::vector<int32_t>& shape);
/// Bytes of a tensor (4-bit types packed); nothing when the shape or the type has no size.
std::optional<int64_t> byte_size(DType dtype, const std::vector<int32_t>& shape);
/// The values of int32 or int64 elements, which need no alignment; nothing of other types.
std::vector<int64_t> read_ints(DType dtype, const uint8_t* bytes, int64_t count);
/// "[1, 16, 12]"
std::string shape_text(const std::vector<int32_t>& shape);

}  // namespace pyquant::circle
