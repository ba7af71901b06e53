// SPDX-License-Identifier: Apache-2.0
#include "run/runner.h"

#include <algorithm>
#include <cstring>

namespace pyquant::run {

using circle::Operator;

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

/// A graph of the workspace runs as long as this is there.
class Running {
 public:
  explicit Running(Workspace& workspace) : workspace_(workspace) { workspace_.set_running(true); }
  Running(const Running&) = delete;
  ~Running() { workspace_.set_running(false); }

 private:
  Workspace& workspace_;
};

}  // namespace

Runner::Runner(std::shared_ptr<const Program> program, std::shared_ptr<Workspace> workspace,
               RunOptions options)
    : program_(std::move(program)), workspace_(std::move(workspace)), options_(options) {}

Status Runner::prepare() {
  std::vector<Shape> shapes;
  for (const Port& port : inputs()) {
    if (std::any_of(port.shape.begin(), port.shape.end(), [](int32_t dim) { return dim < 0; })) {
      return Fault{
          Code::E_RUN_INPUT,
          "is " + circle::shape_text(port.shape) + " with open dimensions; give the shapes of the inputs",
          program_->name() + ", input '" + port.name + "'"};
    }
    shapes.push_back(port.shape);
  }
  return prepare(shapes);
}

Status Runner::require_aligned(const Port& port, const void* data) const {
  const circle::DTypeInfo& type = *circle::info(port.tensor->dtype);
  const auto width = static_cast<uintptr_t>(type.block_elements == 1 ? type.block_bytes : 1);
  if (reinterpret_cast<uintptr_t>(data) % width == 0) return {};
  return Fault{Code::E_RUN_INPUT, "does not lie at a multiple of " + std::to_string(width) + " bytes",
               program_->name() + ", '" + port.name + "'"};
}

Status Runner::not_in_run() const {
  if (!workspace_->is_running()) return {};
  return Fault{Code::E_RUN_INPUT,
               "is called by an observer of a graph of the same workspace, which still runs; give it a "
               "workspace of its own",
               program_->name()};
}

Status Runner::prepare(const std::vector<Shape>& shapes) {
  const Lock lock(workspace_->mutex());
  PYQUANT_TRY(not_in_run());
  if (plan_ && shapes == planned_) return {};
  if (shapes.size() != inputs().size()) {
    return Fault{Code::E_RUN_INPUT,
                 "takes " + std::to_string(inputs().size()) + " inputs, got " +
                     std::to_string(shapes.size()) + " shapes",
                 program_->name()};
  }
  for (size_t i = 0; i < shapes.size(); ++i) {
    const Port& port = inputs()[i];
    bool fits = shapes[i].size() == port.shape.size();
    for (size_t d = 0; fits && d < shapes[i].size(); ++d) {
      fits = shapes[i][d] >= 0 && (port.shape[d] < 0 || port.shape[d] == shapes[i][d]);
    }
    if (fits) continue;
    return Fault{Code::E_RUN_INPUT,
                 "got shape " + circle::shape_text(shapes[i]) + ", expected " +
                     circle::shape_text(port.shape) +
                     (std::count(port.shape.begin(), port.shape.end(), -1) ? " (-1: any)" : ""),
                 program_->name() + ", input '" + port.name + "'"};
  }
  plan_.reset();
  PYQUANT_TRY_ASSIGN(Plan plan, make_plan(*program_, shapes, shared_, options_.memory_limit));
  plan_ = std::move(plan);
  planned_ = shapes;
  data_.assign(program_->graph().tensors.size(), nullptr);
  profile_.clear();
  if (profiling_) start_profile();
  return {};
}

void Runner::start_profile() {
  const Lock lock(workspace_->mutex());
  profiling_ = true;
  profile_.clear();
  if (!plan_) return;
  for (const PlannedStep& planned : plan_->steps) {
    StepProfile entry;
    entry.op = planned.op;
    entry.multiply_adds = planned.step.multiply_adds;
    const Operator& op = program_->graph().operators[planned.op];
    for (const auto* list : {&op.inputs, &op.outputs}) {
      for (int32_t t : *list) entry.bytes += t < 0 ? 0 : plan_->bytes[static_cast<size_t>(t)];
    }
    profile_.push_back(entry);
  }
}

Status Runner::run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                   const Observer* observer) {
  const Lock lock(workspace_->mutex());
  PYQUANT_TRY(not_in_run());
  if (!plan_) return Fault{Code::E_RUN_INPUT, "is not prepared; call prepare first", program_->name()};
  if (inputs.size() != this->inputs().size() || outputs.size() != this->outputs().size()) {
    return Fault{Code::E_RUN_INPUT,
                 "has " + std::to_string(this->inputs().size()) + " inputs and " +
                     std::to_string(this->outputs().size()) + " outputs, got " +
                     std::to_string(inputs.size()) + " and " + std::to_string(outputs.size()),
                 program_->name()};
  }
  for (size_t i = 0; i < inputs.size(); ++i) PYQUANT_TRY(require_aligned(this->inputs()[i], inputs[i]));
  for (size_t k = 0; k < outputs.size(); ++k) PYQUANT_TRY(require_aligned(this->outputs()[k], outputs[k]));
  const Running running(*workspace_);
  return steps(inputs, outputs, observer);
}

Status Runner::steps(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                     const Observer* observer) {
  const Plan& plan = *plan_;
  PYQUANT_TRY_ASSIGN(uint8_t* const memory, workspace_->memory(plan.arena_bytes + plan.scratch_bytes));
  for (size_t t = 0; t < data_.size(); ++t) {
    const Place& place = plan.places[t];
    switch (place.kind) {
      case Place::None:
        break;
      case Place::Constant:
        data_[t] = const_cast<uint8_t*>(place.constant);  // steps only read their inputs
        break;
      case Place::Arena:
        data_[t] = memory + place.offset;
        break;
      case Place::Input:
        data_[t] = static_cast<uint8_t*>(const_cast<void*>(inputs[place.offset]));
        break;
      case Place::Output:
        data_[t] = static_cast<uint8_t*>(outputs[place.offset]);
    }
  }
  if (observer) {
    for (size_t t = 0; t < data_.size(); ++t) {
      const Place::Kind kind = plan.places[t].kind;
      if (kind == Place::Constant || kind == Place::Input) observe(-1, t, *observer);
    }
  }
  const bool profiling = profiling_;  // an observer may start a profile: of the next run
  const circle::Frame frame(data_.data(), memory + plan.arena_bytes, workspace_->threads());
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    const PlannedStep& planned = plan.steps[s];
    const auto start = profiling ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
    const Status status = planned.step.run(frame);
    if (!status.ok()) {
      Fault fault = status.fault();
      fault.where = program_->name() + ", " + operator_place(program_->graph(), planned.op);
      return fault;
    }
    if (profiling) {
      const auto spent = std::chrono::steady_clock::now() - start;
      ++profile_[s].calls;
      profile_[s].nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
    }
    if (observer) {
      for (size_t t : planned.outputs) observe(static_cast<int64_t>(planned.op), t, *observer);
    }
  }
  for (const auto& [tensor, port] : plan.copies) {
    if (plan.bytes[tensor] > 0) {
      std::memcpy(outputs[port], data_[tensor], static_cast<size_t>(plan.bytes[tensor]));
    }
  }
  return {};
}

void Runner::observe(int64_t op, size_t tensor, const Observer& observer) const {
  observer(op, tensor, plan_->shapes[tensor], {data_[tensor], static_cast<size_t>(plan_->bytes[tensor])});
}

}  // namespace pyquant::run
