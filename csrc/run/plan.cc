// SPDX-License-Identifier: Apache-2.0
// Shapes by the rows' infer, lifetimes, places, steps; integers that depend on shapes alone are computed
// here.
#include "run/plan.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "circle/check/check.h"
#include "circle/ops/row.h"
#include "run/arena.h"

namespace pyquant::run {
namespace {

using circle::DType;
using circle::Model;
using circle::Operator;
using circle::Tensor;

constexpr int64_t kMostFolded = 1024;  // elements of an integer tensor that is computed when planning

/// Inference with the values that planning knows: those that it computed, and constants under another name.
class PlanInference : public circle::Inference {
 public:
  PlanInference(const Model& model, const circle::Graph& graph, const Operator& op, const Plan& plan)
      : Inference(model, graph, op, plan.shapes), plan_(plan) {}

  std::vector<int64_t> ints(size_t i) const override {
    const Tensor* const tensor = input(i);
    const auto t = static_cast<size_t>(tensor ? op().inputs[i] : 0);
    if (!tensor || !plan_.places[t].constant) return {};
    return circle::read_ints(tensor->dtype, plan_.places[t].constant,
                             *circle::element_count(plan_.shapes[t]));
  }

 private:
  const Plan& plan_;
};

class Planner {
 public:
  Planner(const Program& program, circle::SharedData& shared, uint64_t limit)
      : program_(program), model_(program.model()), graph_(program.graph()), shared_(shared), limit_(limit) {}

  Result<Plan> plan(const std::vector<Shape>& inputs) {
    const size_t count = graph_.tensors.size();
    plan_.bytes.assign(count, 0);
    plan_.places.assign(count, Place{});
    for (const Tensor& t : graph_.tensors) plan_.shapes.push_back(t.shape);
    for (size_t t = 0; t < count; ++t) {
      if (!model_.is_constant(graph_.tensors[t])) continue;
      plan_.places[t] = {Place::Constant, 0, model_.buffers[graph_.tensors[t].buffer].bytes.data};
      PYQUANT_TRY(size(t));
    }
    for (size_t i = 0; i < program_.inputs().size(); ++i) {
      const size_t t = program_.inputs()[i].index;
      plan_.shapes[t] = inputs[i];
      plan_.places[t] = {Place::Input, i, nullptr};
      PYQUANT_TRY(size(t));
    }
    root_.resize(count);
    for (size_t t = 0; t < count; ++t) root_[t] = t;
    is_output_.assign(count, false);
    for (const Port& port : program_.outputs()) is_output_[port.index] = true;
    for (size_t i = 0; i < graph_.operators.size(); ++i) PYQUANT_TRY(operation(i));
    PYQUANT_TRY(place());
    return std::move(plan_);
  }

 private:
  std::string where(size_t op) const { return program_.name() + ", " + operator_place(graph_, op); }

  Status size(size_t t) {
    const auto bytes = circle::byte_size(graph_.tensors[t].dtype, plan_.shapes[t]);
    if (!bytes || static_cast<uint64_t>(*bytes) > limit_) {
      return Fault{Code::E_RUN_MEMORY,
                   circle::shape_text(plan_.shapes[t]) + " needs " +
                       (bytes ? std::to_string(*bytes) + " bytes" : "more than can be counted") +
                       ", the limit is " + std::to_string(limit_),
                   program_.name() + ", " + circle::tensor_place(graph_, static_cast<int64_t>(t))};
    }
    plan_.bytes[t] = *bytes;
    return {};
  }

  circle::TensorArg operand(int32_t index) const {
    circle::TensorArg arg;
    if (index < 0) return arg;
    const auto t = static_cast<size_t>(index);
    arg.tensor = &graph_.tensors[t];
    arg.index = t;
    arg.shape = plan_.shapes[t];
    arg.elements = *circle::element_count(arg.shape);
    arg.constant = plan_.places[t].constant;
    return arg;
  }

  Status infer(size_t i) {
    const Operator& op = graph_.operators[i];
    PlanInference inference(model_, graph_, op, plan_);
    circle::row_of(*op.op).infer(inference);
    if (!inference.fault().empty()) {
      return Fault{Code::E_RUN_SHAPE, "with these input shapes: expected " + inference.fault(), where(i)};
    }
    for (size_t k = 0; k < op.outputs.size(); ++k) {
      const auto t = static_cast<size_t>(op.outputs[k]);
      const Tensor& tensor = graph_.tensors[t];
      const auto& shape = inference.inferred()[k];
      if (shape) plan_.shapes[t] = *shape;
      if (!circle::is_dynamic(tensor) && plan_.shapes[t] != tensor.shape) {
        return Fault{Code::E_RUN_SHAPE,
                     "gives " + circle::shape_text(plan_.shapes[t]) +
                         " for these input shapes, the file declares " + circle::shape_text(tensor.shape),
                     where(i)};
      }
      PYQUANT_TRY(size(t));
    }
    return {};
  }

  Status operation(size_t i) {
    const Operator& op = graph_.operators[i];
    PYQUANT_TRY(infer(i));
    const circle::OpRow& row = circle::row_of(*op.op);
    if (row.alias && alias(op)) return {};
    std::vector<circle::TensorArg> in, out;
    for (int32_t t : op.inputs) in.push_back(operand(t));
    for (int32_t t : op.outputs) out.push_back(operand(t));
    circle::Builder builder(model_, graph_, op, std::move(in), std::move(out), shared_);
    if (!row.prepare) {
      return Fault{Code::E_RUN_UNSUPPORTED, "the runner has no kernel for it", where(i)};
    }
    auto step = row.prepare(builder);
    if (!step.ok()) {
      Fault fault = step.fault();
      fault.where = where(i);
      return fault;
    }
    plan_.scratch_bytes = std::max(plan_.scratch_bytes, builder.scratch_bytes());
    if (plan_.scratch_bytes > limit_) return too_large("scratch", plan_.scratch_bytes);
    PlannedStep planned{i, std::move(step).value(), {}};
    for (int32_t t : op.outputs) planned.outputs.push_back(static_cast<size_t>(t));
    if (is_foldable(op)) return fold(i, planned, builder.scratch_bytes());
    plan_.steps.push_back(std::move(planned));
    return {};
  }

  // RESHAPE and the like: the same bytes under another name. Outputs of the graph have memory of their own.
  bool alias(const Operator& op) {
    const auto from = static_cast<size_t>(op.inputs[0]), to = static_cast<size_t>(op.outputs[0]);
    if (is_output_[to] || !circle::same_bytes(operand(op.inputs[0]), operand(op.outputs[0]))) return false;
    // A shape or an axis that is computed: the step checks it.
    if (op.inputs.size() > 1 && op.inputs[1] >= 0 &&
        !plan_.places[static_cast<size_t>(op.inputs[1])].constant)
      return false;
    root_[to] = root_[from];
    plan_.places[to] = plan_.places[from];
    if (const auto found = known_.find(from); found != known_.end()) {
      known_[to] = found->second;
      plan_.places[to].constant = known_[to].data();
    }
    return true;
  }

  // Integers that follow from shapes and constants: shapes behind them depend on their values.
  bool is_foldable(const Operator& op) const {
    for (int32_t t : op.outputs) {
      const Tensor& tensor = graph_.tensors[static_cast<size_t>(t)];
      if (!circle::is_index(tensor.dtype) || is_output_[static_cast<size_t>(t)]) return false;
      if (*circle::element_count(plan_.shapes[static_cast<size_t>(t)]) > kMostFolded) return false;
    }
    if (std::string_view(op.op->name) == "SHAPE") return true;
    bool computed = false;
    for (int32_t t : op.inputs) {
      if (t < 0) continue;
      if (!plan_.places[static_cast<size_t>(t)].constant) return false;
      if (plan_.bytes[static_cast<size_t>(t)] > 8 * kMostFolded) return false;
      computed = true;
    }
    return computed;
  }

  Status fold(size_t i, const PlannedStep& planned, size_t scratch_bytes) {
    std::vector<uint8_t*> data(graph_.tensors.size(), nullptr);
    for (size_t t : planned.outputs) {
      // A block of at least 8 bytes: an empty tensor has a place too.
      auto& bytes = known_[t];
      bytes.assign(static_cast<size_t>(std::max<int64_t>(plan_.bytes[t], 8)), 0);
      data[t] = bytes.data();
    }
    for (int32_t t : graph_.operators[i].inputs) {
      if (t >= 0)
        data[static_cast<size_t>(t)] = const_cast<uint8_t*>(plan_.places[static_cast<size_t>(t)].constant);
    }
    std::vector<uint64_t> scratch(scratch_bytes / 8 + 16);
    kernels::Threads one(1);
    void* aligned = scratch.data();
    size_t space = scratch.size() * 8;
    std::align(64, scratch_bytes, aligned, space);
    const Status status = planned.step.run({data.data(), static_cast<uint8_t*>(aligned), one});
    if (!status.ok()) {
      Fault fault = status.fault();
      fault.where = where(i);
      return fault;
    }
    for (size_t t : planned.outputs) {
      known_[t].resize(static_cast<size_t>(plan_.bytes[t]));
      plan_.places[t] = {Place::Constant, 0, known_[t].data()};
    }
    return {};
  }

  Fault too_large(const char* what, size_t bytes) const {
    return {
        Code::E_RUN_MEMORY,
        std::string(what) + " of " + std::to_string(bytes) + " bytes, the limit is " + std::to_string(limit_),
        program_.name()};
  }

  Status place() {
    constexpr size_t kNobody = static_cast<size_t>(-1);
    std::vector<size_t> first(graph_.tensors.size(), kNobody), last(graph_.tensors.size(), 0);
    for (size_t s = 0; s < plan_.steps.size(); ++s) {
      const Operator& op = graph_.operators[plan_.steps[s].op];
      for (int32_t t : op.inputs) {
        if (t >= 0) last[root_[static_cast<size_t>(t)]] = s;
      }
      for (size_t t : plan_.steps[s].outputs) {
        first[t] = s;
        last[t] = std::max(last[t], s);
      }
    }
    for (size_t i = 0; i < program_.outputs().size(); ++i) {
      const size_t t = program_.outputs()[i].index;
      const bool computed = first[t] != kNobody && plan_.places[t].kind == Place::None;
      if (computed) {
        plan_.places[t] = {Place::Output, i, nullptr};
      } else {
        plan_.copies.emplace_back(t, i);
      }
    }
    std::vector<Lifetime> lifetimes;
    std::vector<size_t> tensors;
    for (size_t t = 0; t < graph_.tensors.size(); ++t) {
      if (first[t] == kNobody || plan_.places[t].kind != Place::None) continue;
      lifetimes.push_back({static_cast<size_t>(std::max<int64_t>(plan_.bytes[t], 1)), first[t], last[t], 0});
      tensors.push_back(t);
    }
    plan_.arena_bytes = lay_out(lifetimes);
    if (plan_.arena_bytes > limit_) return too_large("an arena", plan_.arena_bytes);
    for (size_t k = 0; k < tensors.size(); ++k) {
      plan_.places[tensors[k]] = {Place::Arena, lifetimes[k].offset, nullptr};
    }
    for (size_t t = 0; t < graph_.tensors.size(); ++t) {
      if (root_[t] != t) plan_.places[t] = plan_.places[root_[t]];
    }
    // The values that steps were made with live as long as the plan.
    plan_.folded = std::move(known_);
    return {};
  }

  const Program& program_;
  const Model& model_;
  const circle::Graph& graph_;
  circle::SharedData& shared_;
  const uint64_t limit_;
  Plan plan_;
  std::vector<size_t> root_;  // the tensor whose bytes it shares
  std::vector<bool> is_output_;
  std::map<size_t, std::vector<uint8_t>> known_;  // node-based: data() stays where it is
};

}  // namespace

Result<Plan> make_plan(const Program& program, const std::vector<Shape>& inputs, circle::SharedData& shared,
                       uint64_t limit) {
  return Planner(program, shared, limit).plan(inputs);
}

}  // namespace pyquant::run
