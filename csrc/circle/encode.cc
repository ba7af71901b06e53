// SPDX-License-Identifier: Apache-2.0
// Builds the flatbuffer's tables with the generated schema; options tables generically from ops.def.
#include "circle/encode.h"

#include <algorithm>
#include <map>

#include "circle/schema.h"
#include "circle_generated.h"
#include "flatbuffers/flatbuffers.h"

namespace pyquant::circle {
namespace {

namespace fb = ::circle;
using flatbuffers::FlatBufferBuilder;
using flatbuffers::Offset;

// Written where a patch will come; not a default, so that the field takes its place in the table.
constexpr uint32_t kOpen = 1;

class Encoder {
 public:
  Encoder(const Model& model, bool external) : model_(model), external_(external) {}

  Result<Head> head() {
    const auto description = builder_.CreateString(model_.description);
    const auto codes = operator_codes();
    std::vector<Offset<fb::SubGraph>> tables;
    for (const Graph& graph : model_.graphs) tables.push_back(subgraph(graph));
    const auto graphs = builder_.CreateVector(tables);
    const auto buffers = buffer_tables();
    const auto metadata = metadata_entries();
    const auto signatures = signature_defs();
    fb::ModelBuilder root(builder_);
    root.add_version(0);
    root.add_operator_codes(codes);
    root.add_subgraphs(graphs);
    root.add_description(description);
    root.add_buffers(buffers);
    if (!metadata.IsNull()) root.add_metadata(metadata);
    if (!signatures.IsNull()) root.add_signature_defs(signatures);
    fb::FinishModelBuffer(builder_, root.Finish());
    Head head;
    head.external = external_;
    head.bytes.assign(builder_.GetBufferPointer(), builder_.GetBufferPointer() + builder_.GetSize());
    find_slots(head);
    return head;
  }

 private:
  // One entry for each operator, in the order of first use.
  Offset<flatbuffers::Vector<Offset<fb::OperatorCode>>> operator_codes() {
    std::vector<Offset<fb::OperatorCode>> list;
    for (const Graph& graph : model_.graphs) {
      for (const Operator& op : graph.operators) {
        const auto [entry, is_new] = code_index_.try_emplace(op.code, static_cast<uint32_t>(list.size()));
        if (!is_new) continue;
        // Old readers use the byte field only; values that do not fit it are 127 there.
        const auto narrow = static_cast<int8_t>(std::min(op.code, 127));
        fb::OperatorCodeBuilder code(builder_);
        code.add_deprecated_builtin_code(narrow);
        code.add_version(1);
        code.add_builtin_code(static_cast<fb::BuiltinOperator>(op.code));
        list.push_back(code.Finish());
      }
    }
    return builder_.CreateVector(list);
  }

  Offset<fb::SubGraph> subgraph(const Graph& from) {
    std::vector<Offset<fb::Tensor>> tensors;
    for (const Tensor& t : from.tensors) tensors.push_back(tensor(t));
    std::vector<Offset<fb::Operator>> operators;
    for (const Operator& op : from.operators) operators.push_back(operation(op));
    const auto tensor_list = builder_.CreateVector(tensors);
    const auto inputs = builder_.CreateVector(from.inputs);
    const auto outputs = builder_.CreateVector(from.outputs);
    const auto operator_list = builder_.CreateVector(operators);
    const auto name = builder_.CreateString(from.name);
    fb::SubGraphBuilder graph(builder_);
    graph.add_tensors(tensor_list);
    graph.add_inputs(inputs);
    graph.add_outputs(outputs);
    graph.add_operators(operator_list);
    graph.add_name(name);
    return graph.Finish();
  }

  Offset<fb::Tensor> tensor(const Tensor& t) {
    const auto name = builder_.CreateString(t.name);
    const auto shape = builder_.CreateVector(t.shape);
    Offset<flatbuffers::Vector<int32_t>> signature;
    if (!t.shape_signature.empty()) signature = builder_.CreateVector(t.shape_signature);
    Offset<fb::QuantizationParameters> quant;
    if (t.quant) {
      const auto scale = builder_.CreateVector(t.quant->scale);
      const auto zero_point = builder_.CreateVector(t.quant->zero_point);
      fb::QuantizationParametersBuilder q(builder_);
      q.add_scale(scale);
      q.add_zero_point(zero_point);
      q.add_quantized_dimension(t.quant->axis);
      quant = q.Finish();
    }
    fb::TensorBuilder table(builder_);
    table.add_shape(shape);
    table.add_type(static_cast<fb::TensorType>(t.dtype));
    table.add_buffer(t.buffer);
    table.add_name(name);
    if (!quant.IsNull()) table.add_quantization(quant);
    if (!signature.IsNull()) table.add_shape_signature(signature);
    return table.Finish();
  }

  Offset<fb::Operator> operation(const Operator& op) {
    const auto inputs = builder_.CreateVector(op.inputs);
    const auto outputs = builder_.CreateVector(op.outputs);
    const Offset<void> table = options(op);
    fb::OperatorBuilder operation(builder_);
    operation.add_opcode_index(code_index_.at(op.code));
    operation.add_inputs(inputs);
    operation.add_outputs(outputs);
    if (!table.IsNull()) {
      operation.add_builtin_options_type(static_cast<fb::BuiltinOptions>(op.op->options->value));
      operation.add_builtin_options(table);
    }
    return operation.Finish();
  }

  // The options table is always present when the operator has one, even when every field has its default.
  Offset<void> options(const Operator& op) {
    if (op.op->options->value == 0) return 0;
    const std::vector<Field>& fields = op.op->options->fields;
    std::vector<Offset<flatbuffers::Vector<int32_t>>> vectors(fields.size());
    for (size_t i = 0; i < fields.size(); ++i) {
      if (fields[i].kind == FieldKind::Ints) {
        vectors[i] = builder_.CreateVector(std::get<std::vector<int32_t>>(op.options[i]));
      }
    }
    const auto start = builder_.StartTable();
    for (size_t i = 0; i < fields.size(); ++i) {
      const auto slot = static_cast<flatbuffers::voffset_t>(4 + 2 * fields[i].slot);
      const int initial = fields[i].initial;
      const OptionValue& value = op.options[i];
      switch (fields[i].kind) {
        case FieldKind::Ints:
          builder_.AddOffset(slot, vectors[i]);
          break;
        case FieldKind::Bool:
          builder_.AddElement<uint8_t>(slot, std::get<bool>(value), static_cast<uint8_t>(initial));
          break;
        case FieldKind::Float:
          builder_.AddElement<float>(slot, std::get<float>(value), static_cast<float>(initial));
          break;
        case FieldKind::Int:
        case FieldKind::RoPEMode:
          builder_.AddElement<int32_t>(slot, static_cast<int32_t>(std::get<int64_t>(value)), initial);
          break;
        default:  // enums of one byte
          builder_.AddElement<int8_t>(slot, static_cast<int8_t>(std::get<int64_t>(value)),
                                      static_cast<int8_t>(initial));
      }
    }
    return builder_.EndTable(start);
  }

  bool is_metadata(uint32_t buffer) const {
    return std::any_of(model_.metadata.begin(), model_.metadata.end(),
                       [buffer](const Metadata& entry) { return entry.buffer == buffer; });
  }

  // External offsets count only above 1, so tiny constants stay inside, and so does metadata.
  bool is_external(uint32_t buffer) const {
    return external_ && model_.buffers[buffer].bytes.size > 1 && !is_metadata(buffer);
  }

  Offset<flatbuffers::Vector<Offset<fb::Buffer>>> buffer_tables() {
    std::vector<Offset<fb::Buffer>> list;
    for (uint32_t i = 0; i < model_.buffers.size(); ++i) {
      if (i == 0) {
        list.push_back(fb::BufferBuilder(builder_).Finish());
      } else if (is_metadata(i)) {
        const Bytes bytes = model_.buffers[i].bytes;
        builder_.ForceVectorAlignment(bytes.size, 1, 16);
        const auto data = builder_.CreateVector(bytes.data, bytes.size);
        fb::BufferBuilder buffer(builder_);
        buffer.add_data(data);
        list.push_back(buffer.Finish());
      } else if (is_external(i)) {
        fb::BufferBuilder buffer(builder_);
        buffer.add_offset(kOpen);
        buffer.add_size(kOpen + 1);
        list.push_back(buffer.Finish());
      } else {
        // A vector that will follow the tables: its uoffset is filled in once its place is known.
        const auto start = builder_.StartTable();
        builder_.AddElement<uint32_t>(fb::Buffer::VT_DATA, kOpen, 0);
        list.emplace_back(builder_.EndTable(start));
      }
    }
    return builder_.CreateVector(list);
  }

  Offset<flatbuffers::Vector<Offset<fb::Metadata>>> metadata_entries() {
    std::vector<Offset<fb::Metadata>> list;
    for (const Metadata& entry : model_.metadata) {
      const auto name = builder_.CreateString(entry.name);
      fb::MetadataBuilder table(builder_);
      table.add_name(name);
      table.add_buffer(entry.buffer);
      list.push_back(table.Finish());
    }
    if (list.empty()) return 0;
    return builder_.CreateVector(list);
  }

  Offset<flatbuffers::Vector<Offset<fb::TensorMap>>> tensor_maps(const std::vector<NamedIndex>& entries) {
    std::vector<Offset<fb::TensorMap>> list;
    for (const auto& [name, index] : entries) {
      const auto text = builder_.CreateString(name);
      fb::TensorMapBuilder map(builder_);
      map.add_name(text);
      map.add_tensor_index(index);
      list.push_back(map.Finish());
    }
    return builder_.CreateVector(list);
  }

  Offset<flatbuffers::Vector<Offset<fb::SignatureDef>>> signature_defs() {
    std::vector<Offset<fb::SignatureDef>> list;
    for (const Signature& signature : model_.signatures) {
      const auto inputs = tensor_maps(signature.inputs);
      const auto outputs = tensor_maps(signature.outputs);
      const auto key = builder_.CreateString(signature.key);
      fb::SignatureDefBuilder table(builder_);
      table.add_inputs(inputs);
      table.add_outputs(outputs);
      table.add_signature_key(key);
      table.add_subgraph_index(signature.subgraph);
      list.push_back(table.Finish());
    }
    if (list.empty()) return 0;
    return builder_.CreateVector(list);
  }

  void find_slots(Head& head) const {
    const auto* buffers = fb::GetModel(head.bytes.data())->buffers();
    const auto position = [&head](const fb::Buffer* table, flatbuffers::voffset_t field) -> size_t {
      const uint8_t* address = reinterpret_cast<const flatbuffers::Table*>(table)->GetAddressOf(field);
      return address ? static_cast<size_t>(address - head.bytes.data()) : 0;
    };
    for (uint32_t i = 1; i < model_.buffers.size(); ++i) {
      if (is_metadata(i)) continue;
      const fb::Buffer* table = buffers->Get(i);
      head.slots.push_back({i, position(table, fb::Buffer::VT_DATA), position(table, fb::Buffer::VT_OFFSET),
                            position(table, fb::Buffer::VT_SIZE)});
    }
  }

  const Model& model_;
  const bool external_;
  FlatBufferBuilder builder_;
  std::map<int32_t, uint32_t> code_index_;
};

}  // namespace

Result<Head> encode_head(const Model& model, bool external) {
  // The builder counts in 32 bits and does not complain, so a head that could come near that is an error
  // first.
  constexpr uint64_t kMost = uint64_t{1} << 30;
  uint64_t estimate = 0;
  for (const Graph& graph : model.graphs) {
    for (const Tensor& t : graph.tensors) {
      estimate += 128 + t.name.size() + 8 * t.shape.size();
      if (t.quant) estimate += 12 * t.quant->scale.size() + 8;
    }
    for (const Operator& op : graph.operators) estimate += 128 + 4 * (op.inputs.size() + op.outputs.size());
  }
  for (const Metadata& entry : model.metadata) {
    estimate += 64 + entry.name.size() + model.buffers[entry.buffer].bytes.size;
  }
  if (estimate > kMost) {
    return Fault{Code::E_TOO_LARGE,
                 "tables, names and metadata need " + std::to_string(estimate) +
                     " bytes, the format has room for " + std::to_string(kMost),
                 ""};
  }
  return Encoder(model, external).head();
}

}  // namespace pyquant::circle
