// SPDX-License-Identifier: Apache-2.0
#include "random_graph.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "circle/ops/row.h"

namespace run {

using namespace pyquant::circle;  // NOLINT: a test

std::vector<uint8_t> RandomGraph::bytes(size_t count) {
  std::vector<uint8_t> out(count);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(pick(0, 255));
  if (dtype_ != DType::FLOAT32) return out;
  for (size_t at = 0; at + 4 <= count; at += 4) {
    const float value = std::ldexp(static_cast<float>(pick(-999, 999)), -8);
    std::memcpy(out.data() + at, &value, 4);
  }
  return out;
}

QParams RandomGraph::grid(DType dtype) {
  QParams q;
  q.scale = {std::ldexp(static_cast<float>(pick(1, 100)), pick(-9, -5))};
  q.zero_point = {dtype == DType::INT16 ? 0 : dtype == DType::UINT8 ? pick(0, 255) : pick(-9, 9)};
  return q;
}

int32_t RandomGraph::tensor(DType dtype, Shape shape) {
  Tensor& t = model_.graphs[0].tensors.emplace_back();
  t.name = "t" + std::to_string(model_.graphs[0].tensors.size());
  t.dtype = dtype;
  t.shape = std::move(shape);
  if (is_quantized(dtype)) t.quant = grid(dtype);
  return static_cast<int32_t>(model_.graphs[0].tensors.size() - 1);
}

int32_t RandomGraph::constant(int32_t index) {
  Tensor& t = model_.graphs[0].tensors[static_cast<size_t>(index)];
  auto memory =
      std::make_shared<std::vector<uint8_t>>(bytes(static_cast<size_t>(*byte_size(t.dtype, t.shape))));
  Buffer buffer;
  buffer.bytes = {memory->data(), memory->size()};
  t.buffer = static_cast<uint32_t>(model_.buffers.size());
  model_.buffers.push_back(buffer);
  model_.owners.push_back(memory);
  return index;
}

int32_t RandomGraph::integers(const std::vector<int32_t>& values) {
  const int32_t index = constant(tensor(DType::INT32, {static_cast<int32_t>(values.size())}));
  const Bytes bytes = model_.buffers.back().bytes;
  if (bytes.size) std::memcpy(const_cast<uint8_t*>(bytes.data), values.data(), bytes.size);
  return index;
}

template <class Fits>
int32_t RandomGraph::existing(const Fits& fits) {
  std::vector<int32_t> found;
  for (int32_t t : ready_) {
    if (fits(model_.graphs[0].tensors[static_cast<size_t>(t)].shape)) found.push_back(t);
  }
  return found.empty() ? -1 : any(found);
}

bool RandomGraph::add(std::string_view name, std::vector<int32_t> inputs, size_t outputs, int32_t same,
                      int64_t axis) {
  Graph& graph = model_.graphs[0];
  Operator op;
  for (const OpInfo& each : all_ops()) {
    if (each.name == name) op.op = &each;
  }
  op.code = op.op->code;
  op.options_type = op.op->options->value;
  op.has_options = op.options_type != 0;
  for (const Field& field : op.op->options->fields) {
    const std::string_view option = field.name;
    if (field.kind == FieldKind::Bool) {
      op.options.emplace_back(option == "keep_num_dims");
    } else if (field.kind == FieldKind::Ints) {
      op.options.emplace_back(std::vector<int32_t>());
    } else if (option == "num_splits" || option == "num") {
      op.options.emplace_back(static_cast<int64_t>(outputs));
    } else if (option == "values_count") {
      op.options.emplace_back(static_cast<int64_t>(inputs.size()));
    } else if (field.kind == FieldKind::Type) {
      op.options.emplace_back(static_cast<int64_t>(DType::INT32));
    } else {
      op.options.emplace_back(option == "axis" ? axis : int64_t{0});
    }
  }
  op.inputs = std::move(inputs);
  const size_t before = graph.tensors.size();
  const DType dtype = name == "SHAPE" ? DType::INT32 : dtype_;
  for (size_t k = 0; k < outputs; ++k) op.outputs.push_back(tensor(dtype, {1}));
  graph.operators.push_back(op);
  std::vector<std::vector<int32_t>> shapes;
  for (const Tensor& t : graph.tensors) shapes.push_back(t.shape);
  Inference inference(model_, graph, graph.operators.back(), shapes);
  row_of(*op.op).infer(inference);
  if (!inference.fault().empty()) {
    graph.operators.pop_back();
    graph.tensors.resize(before);
    return false;
  }
  for (size_t k = 0; k < outputs; ++k) {
    Tensor& made = graph.tensors[static_cast<size_t>(op.outputs[k])];
    if (inference.inferred()[k]) made.shape = *inference.inferred()[k];
    if (same >= 0) made.quant = graph.tensors[static_cast<size_t>(same)].quant;
    if (dtype == dtype_) ready_.push_back(op.outputs[k]);
  }
  return true;
}

bool RandomGraph::add_any() {
  const int32_t x = any(ready_);
  const Shape shape = model_.graphs[0].tensors[static_cast<size_t>(x)].shape;
  const auto rank = static_cast<int>(shape.size());
  const auto axis = rank == 0 ? 0 : pick(0, rank - 1);
  const int32_t kept = chance(0.7) ? x : -1;  // else the grid changes on the way
  const int64_t count = *element_count(shape);
  const auto alike = [&](const Shape& other) { return other == shape; };
  switch (pick(0, 13)) {
    case 0:
      return add("RESHAPE", {x, integers({static_cast<int32_t>(count)})}, 1, kept);
    case 1:
      return add("RESHAPE", {x, integers({chance(0.5) ? 1 : 2, -1})}, 1, kept);
    case 2: {  // the shape of another tensor, computed
      const int32_t other = existing([&](const Shape& s) { return element_count(s) == count; });
      if (!add("SHAPE", {other}, 1)) return false;
      const int32_t sizes = model_.graphs[0].operators.back().outputs[0];
      if (rank == 0) return false;
      return add("RESHAPE", {x, sizes}, 1, kept);
    }
    case 3: {
      std::vector<int32_t> order(static_cast<size_t>(rank));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random_);
      return add("TRANSPOSE", {x, integers(order)}, 1, kept);
    }
    case 4:
      return add("EXPAND_DIMS", {x, integers({axis})}, 1, kept);
    case 5: {
      std::vector<int32_t> from, sizes;
      for (int32_t dim : shape) {
        from.push_back(dim > 0 ? pick(0, dim - 1) : 0);
        sizes.push_back(pick(0, dim - from.back()));
      }
      return add("SLICE", {x, integers(from), integers(sizes)}, 1, kept);
    }
    case 6:
      if (rank == 0) return false;
      return add("SPLIT", {integers({axis}), x}, static_cast<size_t>(pick(1, 3)), kept);
    case 7:
      return add("CONCATENATION", {x, existing(alike), existing(alike)}, 1, kept, axis);
    case 8:
      return add("PACK", {x, existing(alike)}, 1, kept, axis);
    case 9:
      return add(chance(0.5) ? "ADD" : "MUL", {x, existing(alike)}, 1);
    case 10:
      return add("NEG", {x}, 1);
    case 11: {
      const int32_t other = existing(
          [&](const Shape& s) { return s.size() > 1 && rank > 1 && s[s.size() - 2] == shape.back(); });
      return other >= 0 && add("BATCH_MATMUL", {x, other}, 1);
    }
    case 12: {
      if (rank == 0 || shape.back() == 0) return false;
      const DType of = dtype_ == DType::FLOAT32 ? dtype_ : dtype_ == DType::INT16 ? DType::INT4 : dtype_;
      return add("FULLY_CONNECTED", {x, constant(tensor(of, {pick(1, 5), shape.back()})), -1}, 1);
    }
    default:
      return dtype_ != DType::FLOAT32 && add("QUANTIZE", {x}, 1);
  }
}

Model RandomGraph::draw(int most) {
  static const DType kData[] = {DType::INT16, DType::INT8, DType::UINT8, DType::FLOAT32};
  model_ = Model();
  model_.graphs.emplace_back();
  ready_.clear();
  dtype_ = kData[pick(0, 3)];
  for (int i = pick(1, 3); i > 0; --i) {
    Shape dims(static_cast<size_t>(pick(0, 4)));
    for (int32_t& dim : dims) dim = chance(0.03) ? 0 : pick(1, 4);
    const int32_t t = tensor(dtype_, dims);
    ready_.push_back(t);
    if (i > 1 && chance(0.3)) {
      constant(t);
    } else {
      model_.graphs[0].inputs.push_back(t);
    }
  }
  const int wanted = pick(1, most);
  for (int i = 0; i < wanted; ++i) {
    for (int tries = 0; tries < 5 && !add_any();) ++tries;
  }
  Graph& graph = model_.graphs[0];
  for (const Operator& op : graph.operators) {
    for (int32_t t : op.outputs) {
      if (chance(0.3)) graph.outputs.push_back(t);
    }
  }
  if (graph.outputs.empty() || chance(0.1)) graph.outputs.push_back(any(ready_));
  return std::move(model_);
}

void RandomGraph::mutate(Model& model) {
  Graph& graph = model.graphs[0];
  if (graph.operators.empty()) return;
  Operator& op = any(graph.operators);
  Tensor& t = any(graph.tensors);
  const int last = static_cast<int>(graph.tensors.size()) - 1;
  static const DType kAny[] = {DType::INT16, DType::INT8, DType::UINT8, DType::FLOAT32, DType::INT32,
                               DType::INT64, DType::INT4, DType::BOOL,  DType::FLOAT16};
  switch (pick(0, 8)) {
    case 0:
      if (!op.inputs.empty()) any(op.inputs) = pick(-1, last);
      return;
    case 1:
      any(op.outputs) = pick(0, last);
      return;
    case 2:
      if (!t.shape.empty()) any(t.shape) = chance(0.1) ? INT32_MAX : pick(-1, 6);
      return;
    case 3:
      t.dtype = kAny[pick(0, 8)];
      return;
    case 4:
      if (op.options.empty()) return;
      std::visit(
          [this](auto& value) {
            using T = std::decay_t<decltype(value)>;
            if constexpr (std::is_same_v<T, std::vector<int32_t>>) {
              value.push_back(pick(-2, 4));
            } else {
              value = static_cast<T>(pick(-3, 9));
            }
          },
          any(op.options));
      return;
    case 5:
      t.quant = chance(0.5) ? std::optional<QParams>() : grid(DType::INT8);
      return;
    case 6: {
      const Bytes bytes = any(model.buffers).bytes;
      if (bytes.size == 0) return;
      const auto at = static_cast<size_t>(pick(0, static_cast<int>(bytes.size) - 1));
      const_cast<uint8_t*>(bytes.data)[at] = static_cast<uint8_t>(chance(0.5) ? pick(0, 5) : pick(0, 255));
      return;
    }
    case 7:
      t.buffer = static_cast<uint32_t>(pick(0, static_cast<int>(model.buffers.size()) - 1));
      return;
    default:
      graph.outputs.push_back(pick(0, last));
  }
}

}  // namespace run
