// SPDX-License-Identifier: Apache-2.0
#include "random_operator.h"

#include <cstring>
#include <string_view>

#include "circle/ops/row.h"

namespace run {

using namespace pyquant::circle;  // NOLINT: a test

std::vector<uint8_t> RandomOperator::bytes(size_t count) {
  std::vector<uint8_t> out(count);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(pick(0, 255));
  return out;
}

std::vector<int32_t> RandomOperator::shape() {
  std::vector<int32_t> dims(static_cast<size_t>(pick(0, 4)));
  for (int32_t& dim : dims) dim = chance(0.05) ? 0 : pick(1, 5);
  return dims;
}

DType RandomOperator::data_dtype(const OpInfo& op) {
  static const DType kFloats[] = {DType::FLOAT32, DType::FLOAT32, DType::FLOAT16, DType::BFLOAT16};
  static const DType kQuantized[] = {DType::INT8, DType::UINT8, DType::INT16, DType::INT4, DType::UINT4};
  const char family = op.dtypes[static_cast<size_t>(pick(0, static_cast<int>(op.dtypes.size()) - 1))];
  if (family == 'f') return kFloats[pick(0, 3)];
  if (family == 'q') return kQuantized[pick(0, 4)];
  if (family == 'i') return chance(0.5) ? DType::INT32 : DType::INT64;
  return DType::BOOL;
}

DType RandomOperator::dtype_of(char role, DType data) {
  static const DType kWeights[] = {DType::INT8,  DType::UINT8, DType::INT16,     DType::INT4,
                                   DType::UINT4, DType::INT8,  DType::GGML_Q4_0, DType::GGML_Q8_0};
  static const DType kAny[] = {DType::FLOAT32, DType::INT8, DType::UINT8, DType::INT16,   DType::INT32,
                               DType::INT64,   DType::BOOL, DType::INT4,  DType::FLOAT16, DType::BFLOAT16};
  switch (role) {
    case 'x':
      return data;
    case 'w':
      return is_float(data) && chance(0.5) ? data : kWeights[pick(0, is_float(data) ? 7 : 4)];
    case 'b':
      return is_float(data) ? data : data == DType::INT16 && chance(0.7) ? DType::INT64 : DType::INT32;
    case 'i':
      return chance(0.6) ? DType::INT32 : DType::INT64;
    case 'c':
      return DType::BOOL;
    default:
      return kAny[pick(0, 9)];
  }
}

// Shapes that fit now and then; the rest is for the checker.
std::vector<int32_t> RandomOperator::shape_of(const OpInfo& op, size_t i, const std::vector<int32_t>& data) {
  const std::string_view name = op.name;
  const auto rank = static_cast<int32_t>(data.size());
  const int32_t last = data.empty() ? 1 : data.back();
  if (chance(0.05)) return shape();
  if (name == "FULLY_CONNECTED" && i == 1) return {pick(1, 9), last};
  if (name == "BATCH_MATMUL" && i == 1) {
    std::vector<int32_t> other = data;
    if (other.size() < 2) return other;
    other[other.size() - 2] = chance(0.5) ? last : pick(1, 5);
    other.back() = chance(0.5) ? last : pick(1, 5);
    for (size_t d = 0; d + 2 < other.size(); ++d) other[d] = chance(0.3) ? 1 : other[d];
    return other;
  }
  if (name == "CONV_2D" && i == 1) return {pick(1, 5), pick(1, 3), pick(1, 3), last};
  if (name == "DEPTHWISE_CONV_2D" && i == 1) return {1, pick(1, 3), pick(1, 3), last * pick(1, 2)};
  if (name == "ROPE")
    return data.size() == 4 ? std::vector<int32_t>{1, 1, chance(0.5) ? data[2] : 1, last} : data;
  const char role = op.input(i).role;
  if (role == 'w') return {chance(0.7) ? last : 1};
  if (role == 'b') return {pick(1, 9)};
  if (role == 'i') {
    if (name == "PAD" || name == "PADV2") return {rank, 2};
    if (name == "GATHER" || name == "GATHER_ND" || name == "ONE_HOT") return shape();
    switch (pick(0, 3)) {
      case 0:
        return {};
      case 1:
        return {1};
      default:
        return {rank};
    }
  }
  if (name == "CONCATENATION" || name == "PACK" || chance(0.5)) return data;
  std::vector<int32_t> other = data;
  for (int32_t& dim : other) dim = chance(0.4) ? 1 : dim;
  if (!other.empty() && chance(0.3)) other.erase(other.begin());
  return other;
}

void RandomOperator::give_grid(Tensor& t, bool by_channel, bool zero_is_0) {
  const DTypeInfo& type = *info(t.dtype);
  QParams q;
  q.axis = t.shape.empty() ? 0 : pick(0, static_cast<int>(t.shape.size()) - 1);
  const int size = t.shape.empty() ? 1 : t.shape[static_cast<size_t>(q.axis)];
  const int count = by_channel && size <= 64 ? size : 1;
  for (int i = 0; i < count; ++i) {
    q.scale.push_back(std::ldexp(static_cast<float>(pick(1, 100)), pick(-14, 0)));
    const int64_t zero = type.lowest == 0 ? pick(0, static_cast<int>(type.highest))
                         : chance(0.5)    ? 0
                                          : pick(-5, 5);
    q.zero_point.push_back(zero_is_0 ? 0 : zero);
  }
  t.quant.reset();
  if (!q.scale.empty()) t.quant = std::move(q);
}

int32_t RandomOperator::add(Model& model, DType dtype, std::vector<int32_t> shape, bool constant,
                            bool integers) {
  Graph& graph = model.graphs[0];
  Tensor& t = graph.tensors.emplace_back();
  t.name = "t" + std::to_string(graph.tensors.size());
  t.dtype = dtype;
  if (is_ggml(dtype) && !shape.empty()) shape.back() = 32 * pick(1, 2);
  t.shape = std::move(shape);
  if (is_quantized(dtype) || (integers && chance(0.9))) give_grid(t, chance(constant ? 0.5 : 0.15), integers);
  if (constant) {
    const auto size = byte_size(dtype, t.shape);
    auto memory = std::make_shared<std::vector<uint8_t>>(bytes(static_cast<size_t>(size.value_or(0))));
    if (is_index(dtype) && !integers) {  // values that mean something as an axis, a shape or a place
      const size_t width = dtype == DType::INT32 ? 4 : 8;
      for (size_t at = 0; at + width <= memory->size(); at += width) {
        const int64_t value = chance(0.02) ? INT32_MAX : pick(-2, 4);
        std::memcpy(memory->data() + at, &value, width);
      }
    }
    t.buffer = static_cast<uint32_t>(model.buffers.size());
    Buffer buffer;
    buffer.bytes = {memory->data(), memory->size()};
    model.buffers.push_back(buffer);
    model.owners.push_back(memory);
  }
  return static_cast<int32_t>(graph.tensors.size() - 1);
}

OptionValue RandomOperator::option(const Field& field, size_t outputs, size_t inputs) {
  const std::string_view name = field.name;
  switch (field.kind) {
    case FieldKind::Bool:
      return chance(0.5);
    case FieldKind::Float:
      return std::ldexp(static_cast<float>(pick(1, 9)), pick(-10, 1));
    case FieldKind::Ints: {
      std::vector<int32_t> values(static_cast<size_t>(pick(0, 3)));
      for (int32_t& value : values) value = pick(-2, 4);
      return values;
    }
    case FieldKind::Int:
      if (name == "num_splits" || name == "num") return static_cast<int64_t>(outputs);
      if (name == "values_count") return static_cast<int64_t>(inputs);
      if (name.find("stride") == 0 || name.find("dilation") == 0 || name == "depth_multiplier")
        return int64_t{pick(1, 2)};
      if (name.find("mask") != std::string_view::npos) return int64_t{chance(0.5) ? 0 : pick(0, 7)};
      return int64_t{pick(-3, 3)};
    default: {
      const auto& names = enum_names(field.kind);
      if (field.kind != FieldKind::Type && chance(0.7)) return int64_t{0};
      return int64_t{names[static_cast<size_t>(pick(0, static_cast<int>(names.size()) - 1))].value};
    }
  }
}

Model RandomOperator::draw(const OpInfo& op) {
  Model model;
  Graph& graph = model.graphs.emplace_back();
  Operator it;
  it.code = op.code;
  it.op = &op;
  it.options_type = op.options->value;
  it.has_options = it.options_type != 0;
  const DType data = data_dtype(op);
  std::vector<int32_t> dims = shape();
  const std::string_view name = op.name;
  if (name == "CONV_2D" || name == "DEPTHWISE_CONV_2D" || name == "INSTANCE_NORM" || name == "ROPE") {
    dims = {pick(1, 2), pick(1, 5), pick(1, 5), 2 * pick(1, 3)};
  }
  const bool range = name == "RANGE";
  if (range) dims = {};
  std::vector<Operand> wanted = op.inputs;
  if (!wanted.empty() && wanted.back().repeats)
    wanted.resize(wanted.size() + static_cast<size_t>(pick(0, 2)), wanted.back());
  bool first = true;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const char role = wanted[i].role;
    if (wanted[i].may_be_none && chance(0.3)) {
      it.inputs.push_back(-1);
      continue;
    }
    if (wanted[i].may_be_absent && chance(0.5)) break;
    const bool leads = first && (role == 'x' || role == 'a' || (name == "ONE_HOT" && i == 0));
    DType dtype = dtype_of(role, data);
    if (name == "GATHER" && i == 0 && chance(0.1)) dtype = DType::GGML_Q4_0;
    const bool constant = range                        ? chance(0.9)
                          : role == 'w' || role == 'b' ? chance(0.85)
                          : role == 'i'                ? chance(0.75)
                                                       : chance(0.1);
    it.inputs.push_back(
        add(model, dtype, leads ? dims : shape_of(op, i, dims), constant, role == 'b' && !is_float(data)));
    first = first && !leads;
  }
  if (range) dims = {pick(0, 6)};
  size_t outputs = op.outputs.size();
  if (op.outputs.back().repeats) outputs = static_cast<size_t>(pick(1, 3));
  for (const Field& field : op.options->fields)
    it.options.push_back(option(field, outputs, it.inputs.size()));
  for (size_t k = 0; k < outputs; ++k) {
    const char role = op.output(k).role;
    it.outputs.push_back(add(model, dtype_of(role == 'i' ? 'i' : role, data), dims, false, false));
  }
  // Options that name a dtype name that of the operand, mostly.
  for (size_t f = 0; f < op.options->fields.size(); ++f) {
    const std::string_view field = op.options->fields[f].name;
    const bool in = field == "in_data_type";
    if (in || field == "out_data_type" || field == "output_type" || field == "out_type") {
      const int32_t t = in ? it.inputs[0] : it.outputs[0];
      it.options[f] = static_cast<int64_t>(graph.tensors[static_cast<size_t>(t)].dtype);
    }
  }
  graph.operators.push_back(std::move(it));
  const Operator& made = graph.operators[0];
  for (int32_t t : made.inputs) {
    if (t >= 0 && !model.is_constant(graph.tensors[static_cast<size_t>(t)])) graph.inputs.push_back(t);
  }
  graph.outputs = made.outputs;
  // Outputs as the row infers them.
  std::vector<Shape> shapes;
  bool sized = true;
  for (const Tensor& t : graph.tensors) {
    shapes.push_back(t.shape);
    sized = sized && element_count(t.shape).has_value();
  }
  if (!sized || made.inputs.size() < op.min_inputs()) return model;
  for (int tries = 0; tries < 2; ++tries) {
    Inference inference(model, graph, made, shapes);
    row_of(op).infer(inference);
    if (!inference.fault().empty()) return model;
    for (size_t k = 0; k < outputs; ++k) {
      if (!inference.inferred()[k]) continue;
      const auto t = static_cast<size_t>(made.outputs[k]);
      graph.tensors[t].shape = shapes[t] = *inference.inferred()[k];
      if (graph.tensors[t].quant) give_grid(graph.tensors[t], chance(0.15), false);
    }
  }
  return model;
}

}  // namespace run
