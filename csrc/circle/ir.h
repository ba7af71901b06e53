// SPDX-License-Identifier: Apache-2.0
// A Circle model as plain structs: what plans and files are read into, what the checker checks and the
// writer writes. It owns names, numbers and spans; the memory of constant bytes (a mapping, the caller's)
// is kept by `owners`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "circle/dtype.h"
#include "circle/ops.h"

namespace pyquant::circle {

class Mapping;  // file.h

/// Bytes that somebody else keeps alive.
struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

/// One of the file's buffers. Buffer 0 is the empty sentinel: "no data".
struct Buffer {
  Bytes
      bytes;  // data is null when only the size is known (a plan that is checked before its constants exist)
  bool external = false;  // outside the flatbuffer, at `offset` of the file
  uint64_t offset = 0;
  uint64_t claimed = 0;  // Buffer.size of an external buffer, even when the file is too short for it
};

struct QParams {
  std::vector<float> scale;
  std::vector<int64_t> zero_point;
  int32_t axis = 0;
  uint8_t details = 0;  // QuantizationDetails; 0: affine, the only kind that plans can express
};

struct Tensor {
  std::string name;
  DType dtype = DType::FLOAT32;
  std::vector<int32_t> shape;
  std::vector<int32_t> shape_signature;  // empty: same as shape
  std::optional<QParams> quant;
  uint32_t buffer = 0;
  bool is_variable = false;
  bool is_sparse = false;  // sparse or compressed
};

/// Bool options are bool, enums and ints int64_t.
using OptionValue = std::variant<bool, int64_t, float, std::vector<int32_t>>;

struct Operator {
  int32_t code = 0;             // BuiltinOperator
  const OpInfo* op = nullptr;   // nullptr: not in ops.def
  std::string custom_code;      // of CUSTOM operators
  uint32_t opcode_index = 0;    // in a file
  uint8_t options_type = 0;     // union value in a file
  bool has_options = false;     // the table is there
  std::vector<int32_t> inputs;  // -1: none
  std::vector<int32_t> outputs;
  std::vector<OptionValue>
      options;  // one for each field of op->options; empty when the table is not the operator's
};

/// One entry of Model.operator_codes as the file has it.
struct OperatorCode {
  int32_t builtin = 0;
  int8_t deprecated = 0;
  int32_t version = 1;
  std::string custom_code;
};

using NamedIndex = std::pair<std::string, uint32_t>;

struct Signature {
  std::string key;
  uint32_t subgraph = 0;
  std::vector<NamedIndex> inputs;
  std::vector<NamedIndex> outputs;
};

struct Metadata {
  std::string name;
  uint32_t buffer = 0;
};

/// A subgraph: tensors and the operators on them, in the order in which they run.
struct Graph {
  std::string name;
  std::vector<Tensor> tensors;
  std::vector<Operator> operators;
  std::vector<int32_t> inputs;
  std::vector<int32_t> outputs;

  bool has_tensor(int64_t index) const { return index >= 0 && static_cast<size_t>(index) < tensors.size(); }
};

/// A file: graphs that share buffers.
struct Model {
  uint32_t version = 0;
  std::string description;
  std::vector<OperatorCode> operator_codes;  // of a file; a plan leaves it empty
  std::vector<Graph> graphs;
  std::vector<Signature> signatures;
  std::vector<Metadata> metadata;
  std::vector<Buffer> buffers = {Buffer{}};
  bool from_file = false;
  uint64_t file_size = 0;
  std::vector<std::shared_ptr<const void>> owners;    // keep the buffers' bytes alive
  std::vector<std::shared_ptr<const Mapping>> files;  // those of the owners that are mapped files

  /// Whether a tensor carries data: a buffer other than 0 that is not empty (or whose tensor has no
  /// elements).
  bool is_constant(const Tensor& t) const {
    if (t.buffer == 0 || t.buffer >= buffers.size()) return false;
    const Buffer& buffer = buffers[t.buffer];
    return buffer.bytes.size > 0 || buffer.claimed > 0 || element_count(t.shape) == int64_t{0};
  }
};

/// "RELU", "CUSTOM(name)", or the schema's name of an operator that ops.def does not have.
std::string op_name(const Operator& op);
/// "tensors[3] 'w'" and "operators[5] FULLY_CONNECTED", for messages.
std::string tensor_place(const Graph& graph, int64_t tensor);
std::string operator_place(const Graph& graph, size_t op);

}  // namespace pyquant::circle
