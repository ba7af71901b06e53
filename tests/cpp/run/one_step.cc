// SPDX-License-Identifier: Apache-2.0
#include "one_step.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernels/threads.h"

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

Tensor tensor_of(const Operand& operand, size_t index) {
  Tensor t;
  t.name = "t" + std::to_string(index);
  t.dtype = operand.dtype;
  t.shape = operand.shape;
  if (operand.scale.empty()) return t;
  t.quant = QParams{operand.scale, operand.zero_point, operand.axis, 0};
  t.quant->zero_point.resize(operand.scale.size(), 0);
  return t;
}

}  // namespace

OneStep::OneStep(const std::string& name, std::vector<Operand> inputs, std::vector<Operand> outputs,
                 const Options& options)
    : inputs_(std::move(inputs)), outputs_(std::move(outputs)) {
  Operator op;
  op.op = op_by_name(name);
  if (!op.op) std::abort();
  op.code = op.op->code;
  op.has_options = true;
  model_.graphs.emplace_back();
  op.options_type = op.op->options->value;
  for (const Field& field : op.op->options->fields) {
    const auto given = options.find(field.name);
    op.options.push_back(given == options.end() ? initial(field) : given->second);
  }
  const auto add = [this](const Operand& operand) {
    const size_t index = graph().tensors.size();
    graph().tensors.push_back(tensor_of(operand, index));
    if (operand.constant) {
      // 4 bytes behind an address that is aligned for everything.
      const size_t size = operand.bytes.size();
      const std::shared_ptr<uint8_t[]> memory(new uint8_t[size + 4]);
      if (size > 0) std::memcpy(memory.get() + 4, operand.bytes.data(), size);
      model_.owners.push_back(std::shared_ptr<const void>(memory, memory.get()));
      graph().tensors.back().buffer = static_cast<uint32_t>(model_.buffers.size());
      Buffer buffer;
      buffer.bytes = {memory.get() + 4, size};
      model_.buffers.push_back(buffer);
    }
    return static_cast<int32_t>(index);
  };
  for (const Operand& operand : inputs_) {
    op.inputs.push_back(add(operand));
    if (!operand.constant) graph().inputs.push_back(op.inputs.back());
  }
  for (const Operand& operand : outputs_) {
    op.outputs.push_back(add(operand));
    graph().outputs.push_back(op.outputs.back());
  }
  graph().operators.push_back(std::move(op));
}

std::string OneStep::faults() const {
  std::string text;
  for (const auto& fault : check(model_, Target::Circle)) text += fault.text() + "\n";
  return text;
}

Result<std::vector<std::vector<uint8_t>>> OneStep::run(int threads) const {
  const Operator& op = graph().operators[0];
  const auto arg = [this](int32_t index) {
    TensorArg a;
    a.index = static_cast<size_t>(index);
    a.tensor = &graph().tensors[a.index];
    a.shape = a.tensor->shape;
    a.elements = *element_count(a.shape);
    if (model_.is_constant(*a.tensor)) a.constant = model_.buffers[a.tensor->buffer].bytes.data;
    return a;
  };
  std::vector<TensorArg> in, out;
  for (int32_t i : op.inputs) in.push_back(arg(i));
  for (int32_t i : op.outputs) out.push_back(arg(i));
  SharedData shared;
  Builder builder(model_, graph(), op, in, out, shared);
  PYQUANT_TRY_ASSIGN(const Step step, row_of(*op.op).prepare(builder));

  std::vector<std::vector<uint8_t>> memory(graph().tensors.size());
  std::vector<uint8_t*> data(graph().tensors.size(), nullptr);
  for (size_t i = 0; i < in.size(); ++i) {
    if (!in[i].constant) memory[in[i].index] = inputs_[i].bytes;
  }
  for (const TensorArg& y : out)
    memory[y.index].assign(static_cast<size_t>(*byte_size(y.dtype(), y.shape)), 0xa5);
  for (size_t i = 0; i < memory.size(); ++i) data[i] = memory[i].data();
  const size_t bytes = builder.scratch_bytes();
  const std::unique_ptr<uint8_t, decltype(&std::free)> scratch(
      static_cast<uint8_t*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes)), &std::free);
  std::memset(scratch.get(), 0x5a, bytes);
  pyquant::kernels::Threads pool(threads);
  PYQUANT_TRY(step.run(Frame(data.data(), scratch.get(), pool)));

  std::vector<std::vector<uint8_t>> results;
  for (const TensorArg& y : out) results.push_back(memory[y.index]);
  return results;
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
