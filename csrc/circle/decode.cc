// SPDX-License-Identifier: Apache-2.0
// Bytes to Model: flatbuffers' own Verifier first, then every table copied out; constants are not
// copied. A file that is a flatbuffer but makes no sense is read too, so that check() can list what is
// wrong with it.
#include <algorithm>
#include <cstring>
#include <limits>

#include "circle/file.h"
#include "circle_generated.h"
#include "flatbuffers/flatbuffers.h"
#include "flatbuffers/verifier.h"
#include "pyquant/circle.h"

namespace pyquant::circle {
namespace {

namespace fb = ::circle;
using flatbuffers::Table;

// The flatbuffer of a file with external constants is within its first 2 GiB.
constexpr size_t kMostVerified = (size_t{1} << 31) - 2;

class Decoder {
 public:
  Decoder(Bytes file, const std::string& what)
      : file_(file), what_(what), budget_(8 * file.size + (1 << 20)) {}

  Result<Model> model() {
    if (file_.size < 8 || std::memcmp(file_.data + 4, fb::ModelIdentifier(), 4) != 0) {
      return Fault{Code::E_NOT_CIRCLE,
                   file_.size < 8
                       ? "has " + std::to_string(file_.size) + " bytes, a Circle file has more"
                       : "does not carry the identifier CIR0 in bytes 4 to 7; is it a .circle file?",
                   what_};
    }
    flatbuffers::Verifier::Options limits;
    limits.max_tables = 4u << 20;
    flatbuffers::Verifier verifier(file_.data, std::min(file_.size, kMostVerified), limits);
    if (!fb::VerifyModelBuffer(verifier)) {
      return Fault{Code::E_FLATBUFFER,
                   "flatbuffers' verifier rejects its " + std::to_string(file_.size) +
                       " bytes: truncated or corrupted; write or fetch it again",
                   what_};
    }
    const fb::Model* root = fb::GetModel(file_.data);
    model_.from_file = true;
    model_.file_size = file_.size;
    model_.version = root->version();
    copy(root->description(), model_.description);
    if (const auto* codes = root->operator_codes()) {
      for (const auto* code : *codes) operator_code(*code);
    }
    model_.buffers.clear();
    if (const auto* buffers = root->buffers()) {
      for (const auto* buffer : *buffers) model_.buffers.push_back(buffer_of(*buffer));
    }
    if (const auto* graphs = root->subgraphs()) {
      for (const auto* graph : *graphs) {
        if (!spend(sizeof(Graph))) break;
        subgraph(*graph, model_.graphs.emplace_back());
      }
    }
    if (const auto* signatures = root->signature_defs()) {
      for (const auto* signature : *signatures) signature_def(*signature);
    }
    if (const auto* metadata = root->metadata()) {
      for (const auto* entry : *metadata) {
        Metadata out;
        copy(entry->name(), out.name);
        out.buffer = entry->buffer();
        model_.metadata.push_back(std::move(out));
      }
    }
    if (exhausted_) {
      return Fault{Code::E_FLATBUFFER,
                   "its tables share data so often that they expand to more than the file has", what_};
    }
    return std::move(model_);
  }

 private:
  // Tables may share vectors, so a small hostile file could unfold without end; what is copied is counted.
  bool spend(uint64_t bytes) {
    if (exhausted_ || bytes > budget_) {
      exhausted_ = true;
      return false;
    }
    budget_ -= bytes;
    return true;
  }

  void copy(const flatbuffers::String* from, std::string& to) {
    if (from && spend(from->size())) to.assign(from->c_str(), from->size());
  }

  // The verifier does not look at the alignment of 8-byte elements, so they are copied as bytes.
  template <typename T>
  void copy(const flatbuffers::Vector<T>* from, std::vector<T>& to) {
    const size_t bytes = from ? size_t{from->size()} * sizeof(T) : 0;
    if (bytes == 0 || !spend(bytes)) return;
    to.resize(from->size());
    std::memcpy(to.data(), from->Data(), bytes);
    for (T& value : to) value = flatbuffers::EndianScalar(value);
  }

  void operator_code(const fb::OperatorCode& code) {
    OperatorCode out;
    out.builtin = static_cast<int32_t>(code.builtin_code());
    out.deprecated = code.deprecated_builtin_code();
    out.version = code.version();
    copy(code.custom_code(), out.custom_code);
    model_.operator_codes.push_back(std::move(out));
  }

  Buffer buffer_of(const fb::Buffer& table) const {
    Buffer buffer;
    if (table.offset() > 1) {
      buffer.external = true;
      buffer.offset = table.offset();
      buffer.claimed = table.size();
      if (buffer.offset <= file_.size && buffer.claimed <= file_.size - buffer.offset) {
        buffer.bytes = {file_.data + buffer.offset, static_cast<size_t>(buffer.claimed)};
      }
    } else if (const auto* data = table.data()) {
      buffer.bytes = {data->data(), data->size()};
    }
    return buffer;
  }

  void subgraph(const fb::SubGraph& table, Graph& graph) {
    copy(table.name(), graph.name);
    if (const auto* tensors = table.tensors()) {
      for (const auto* t : *tensors) tensor(*t, graph);
    }
    if (const auto* operators = table.operators()) {
      for (const auto* op : *operators) operation(*op, graph);
    }
    copy(table.inputs(), graph.inputs);
    copy(table.outputs(), graph.outputs);
  }

  void tensor(const fb::Tensor& table, Graph& graph) {
    Tensor out;
    copy(table.name(), out.name);
    copy(table.shape(), out.shape);
    copy(table.shape_signature(), out.shape_signature);
    out.dtype = static_cast<DType>(table.type());
    out.buffer = table.buffer();
    out.is_variable = table.is_variable();
    out.is_sparse = table.sparsity() != nullptr || table.compression_type() != fb::CompressionType::NONE;
    const auto* quant = table.quantization();
    // TFLite and TICO leave empty tables on float tensors; they mean "none".
    const auto filled = [](const auto* vector) { return vector && vector->size() > 0; };
    if (quant && (filled(quant->scale()) || filled(quant->zero_point()) ||
                  quant->details_type() != fb::QuantizationDetails::NONE)) {
      QParams q;
      copy(quant->scale(), q.scale);
      copy(quant->zero_point(), q.zero_point);
      q.axis = quant->quantized_dimension();
      q.details = static_cast<uint8_t>(quant->details_type());
      out.quant = std::move(q);
    }
    graph.tensors.push_back(std::move(out));
  }

  void operation(const fb::Operator& table, Graph& graph) {
    Operator out;
    out.opcode_index = table.opcode_index();
    if (out.opcode_index < model_.operator_codes.size()) {
      const OperatorCode& code = model_.operator_codes[out.opcode_index];
      // Files older than the wide field have only the byte.
      out.code = code.builtin == 0 ? code.deprecated : code.builtin;
      out.op = op_by_code(out.code);
      if (spend(code.custom_code.size())) out.custom_code = code.custom_code;
    } else {
      out.code = std::numeric_limits<int32_t>::min();
    }
    copy(table.inputs(), out.inputs);
    copy(table.outputs(), out.outputs);
    out.options_type = static_cast<uint8_t>(table.builtin_options_type());
    const auto* options = static_cast<const Table*>(table.builtin_options());
    out.has_options = options != nullptr;
    if (options && out.op && out.options_type == out.op->options->value) {
      for (const Field& field : out.op->options->fields) out.options.push_back(option(*options, field));
    }
    graph.operators.push_back(std::move(out));
  }

  OptionValue option(const Table& table, const Field& field) {
    const auto slot = static_cast<flatbuffers::voffset_t>(4 + 2 * field.slot);
    const int initial = field.initial;
    switch (field.kind) {
      case FieldKind::Bool:
        return table.GetField<uint8_t>(slot, static_cast<uint8_t>(initial)) != 0;
      case FieldKind::Float:
        return table.GetField<float>(slot, static_cast<float>(initial));
      case FieldKind::Ints: {
        std::vector<int32_t> list;
        copy(table.GetPointer<const flatbuffers::Vector<int32_t>*>(slot), list);
        return list;
      }
      case FieldKind::Int:
      case FieldKind::RoPEMode:
        return int64_t{table.GetField<int32_t>(slot, initial)};
      default:
        return int64_t{table.GetField<int8_t>(slot, static_cast<int8_t>(initial))};
    }
  }

  void names(const flatbuffers::Vector<flatbuffers::Offset<fb::TensorMap>>* maps,
             std::vector<NamedIndex>& out) {
    if (!maps) return;
    for (const auto* map : *maps) {
      out.emplace_back(std::string(), map->tensor_index());
      copy(map->name(), out.back().first);
    }
  }

  void signature_def(const fb::SignatureDef& table) {
    Signature out;
    copy(table.signature_key(), out.key);
    out.subgraph = table.subgraph_index();
    names(table.inputs(), out.inputs);
    names(table.outputs(), out.outputs);
    model_.signatures.push_back(std::move(out));
  }

  Bytes file_;
  const std::string& what_;
  uint64_t budget_;
  bool exhausted_ = false;
  Model model_;
};

}  // namespace

Result<Model> read_bytes(Bytes bytes, const std::string& what, std::shared_ptr<const void> owner) {
  // Scalars are read in place, so an odd address (a slice of the caller's memory) is copied to an even one.
  if (reinterpret_cast<uintptr_t>(bytes.data) % 8 != 0) {
    auto copy = std::make_shared<std::vector<uint64_t>>(bytes.size / 8 + 1);
    std::memcpy(copy->data(), bytes.data, bytes.size);
    bytes.data = reinterpret_cast<const uint8_t*>(copy->data());
    owner = std::move(copy);
  }
  PYQUANT_TRY_ASSIGN(Model model, Decoder(bytes, what).model());
  model.owners.push_back(std::move(owner));
  return model;
}

Result<Model> read_file(const std::string& path) {
  PYQUANT_TRY_ASSIGN(auto mapping, Mapping::open(path));
  PYQUANT_TRY_ASSIGN(Model model, read_bytes(mapping->bytes(), path, mapping));
  model.files.push_back(std::move(mapping));
  return model;
}

}  // namespace pyquant::circle
