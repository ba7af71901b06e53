// SPDX-License-Identifier: Apache-2.0
#include "one_step.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernels/threads.h"

namespace run {
using namespace pyquant::circle;

OneStep::OneStep(const std::string& name, std::vector<Operand> inputs, std::vector<Operand> outputs,
                 const Options& options)
    : inputs_(std::move(inputs)), outputs_(std::move(outputs)) {
  std::vector<int32_t> operands;
  for (const Operand& operand : inputs_)
    operands.push_back(operand.constant ? graph_.tensor(operand) : graph_.input(operand));
  graph_.add(name, std::move(operands), outputs_, options);
  for (int32_t t : graph().operators[0].outputs) graph_.output(t);
}

std::string OneStep::faults() const {
  std::string text;
  for (const auto& fault : check(graph_.model, Target::Circle)) text += fault.text() + "\n";
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
    if (graph_.model.is_constant(*a.tensor)) a.constant = graph_.model.buffers[a.tensor->buffer].bytes.data;
    return a;
  };
  std::vector<TensorArg> in, out;
  for (int32_t i : op.inputs) in.push_back(arg(i));
  for (int32_t i : op.outputs) out.push_back(arg(i));
  SharedData shared;
  Builder builder(graph_.model, graph(), op, in, out, shared);
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

}  // namespace run
