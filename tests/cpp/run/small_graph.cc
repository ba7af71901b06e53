// SPDX-License-Identifier: Apache-2.0
#include "small_graph.h"

#include <cstdlib>
#include <cstring>
#include <memory>

namespace run {
namespace {

using namespace pyquant::circle;

OptionValue initial(const Field& field) {
  switch (field.kind) {
    case FieldKind::Bool:
      return field.initial != 0;
    case FieldKind::Float:
      return static_cast<float>(field.initial);
    case FieldKind::Ints:
      return std::vector<int32_t>();
    default:
      return static_cast<int64_t>(field.initial);
  }
}

}  // namespace

int32_t SmallGraph::tensor(const Operand& operand) {
  Tensor& t = graph().tensors.emplace_back();
  const size_t index = graph().tensors.size() - 1;
  t.name = "t" + std::to_string(index);
  t.dtype = operand.dtype;
  t.shape = operand.shape;
  if (!operand.scale.empty()) {
    t.quant = QParams{operand.scale, operand.zero_point, operand.axis, 0};
    t.quant->zero_point.resize(operand.scale.size(), 0);
  }
  if (operand.constant) {
    // 4 bytes behind an address that is aligned for everything.
    const size_t size = operand.bytes.size();
    const std::shared_ptr<uint8_t[]> memory(new uint8_t[size + 4]);
    if (size > 0) std::memcpy(memory.get() + 4, operand.bytes.data(), size);
    model.owners.push_back(std::shared_ptr<const void>(memory, memory.get()));
    t.buffer = static_cast<uint32_t>(model.buffers.size());
    Buffer buffer;
    buffer.bytes = {memory.get() + 4, size};
    model.buffers.push_back(buffer);
  }
  return static_cast<int32_t>(index);
}

int32_t SmallGraph::input(const Operand& operand) {
  const int32_t t = tensor(operand);
  graph().inputs.push_back(t);
  return t;
}

int32_t SmallGraph::add(const std::string& name, std::vector<int32_t> inputs,
                        const std::vector<Operand>& outputs, const Options& options) {
  Operator op;
  op.op = op_by_name(name);
  if (!op.op) std::abort();
  op.code = op.op->code;
  op.has_options = true;
  op.options_type = op.op->options->value;
  for (const Field& field : op.op->options->fields) {
    const auto given = options.find(field.name);
    op.options.push_back(given == options.end() ? initial(field) : given->second);
  }
  op.inputs = std::move(inputs);
  for (const Operand& each : outputs) op.outputs.push_back(tensor(each));
  graph().operators.push_back(std::move(op));
  return graph().operators.back().outputs[0];
}

Operand ints(const std::vector<int64_t>& values, const Shape& shape, bool constant, DType dtype) {
  Operand out{dtype, shape};
  for (int64_t value : values) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    out.bytes.insert(out.bytes.end(), bytes, bytes + (dtype == DType::INT64 ? 8 : 4));
  }
  out.constant = constant;
  return out;
}

Operand ints(const std::vector<int64_t>& values, bool constant, DType dtype) {
  return ints(values, Shape{static_cast<int32_t>(values.size())}, constant, dtype);
}

}  // namespace run
