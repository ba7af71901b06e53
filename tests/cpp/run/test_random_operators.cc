// SPDX-License-Identifier: Apache-2.0
// Whatever the checker lets through runs without reading or writing outside a tensor: buffers have exactly
// their size, so that a sanitizer sees every step outside; guards catch writes without one.
// PYQUANT_RANDOM_RUNS=1000000 runs longer.
#include <cstdlib>
#include <map>

#include "check.h"
#include "pyquant/circle.h"
#include "random_operator.h"
#include "run/runner.h"

namespace {

using namespace pyquant::circle;  // NOLINT: a test
using pyquant::run::Program;
using pyquant::run::Runner;
using pyquant::run::Workspace;

constexpr size_t kGuard = 64;
constexpr uint64_t kLimit = 1 << 22;

/// Memory of exactly `size` bytes between guards.
struct Guarded {
  explicit Guarded(size_t bytes) : size(bytes), memory(bytes + 2 * kGuard, 0xa5) {}
  uint8_t* data() { return memory.data() + kGuard; }
  bool whole() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (memory[i] != 0xa5 || memory[kGuard + size + i] != 0xa5) return false;
    }
    return true;
  }
  size_t size;
  std::vector<uint8_t> memory;
};

bool expected_code(pyquant::Code code) {
  return code == pyquant::Code::E_RUN_VALUE || code == pyquant::Code::E_RUN_SHAPE ||
         code == pyquant::Code::E_RUN_MEMORY || code == pyquant::Code::E_RUN_UNSUPPORTED;
}

/// What became of a model: refused by the checker, refused by the runner, or run.
enum class End { Refused, NotRun, Run };

End run_model(Model model, run::RandomOperator& random, const std::shared_ptr<Workspace>& workspace) {
  auto program = Program::from_model(std::move(model), "random");
  if (!program.ok()) return End::Refused;
  Runner runner(program.value(), workspace, {kLimit});
  const auto planned = runner.prepare();
  if (!planned.ok()) {
    CHECK_MSG(expected_code(planned.fault().code), planned.fault().text());
    return End::NotRun;
  }
  std::vector<std::unique_ptr<Guarded>> memory;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (size_t i = 0; i < runner.inputs().size(); ++i) {
    memory.push_back(std::make_unique<Guarded>(static_cast<size_t>(runner.input_bytes(i))));
    const auto values = random.bytes(memory.back()->size);
    std::copy(values.begin(), values.end(), memory.back()->data());
    if (runner.inputs()[i].tensor->dtype == DType::BOOL) {
      for (size_t b = 0; b < memory.back()->size; ++b) memory.back()->data()[b] &= 1;
    }
    if (is_index(runner.inputs()[i].tensor->dtype) && values.size() % 3 != 0) {
      std::fill_n(memory.back()->data(), memory.back()->size, uint8_t{0});  // indices that exist, mostly
    }
    inputs.push_back(memory.back()->data());
  }
  for (size_t k = 0; k < runner.outputs().size(); ++k) {
    memory.push_back(std::make_unique<Guarded>(static_cast<size_t>(runner.output_bytes(k))));
    outputs.push_back(memory.back()->data());
  }
  const auto ran = runner.run(inputs, outputs);
  if (!ran.ok()) CHECK_MSG(expected_code(ran.fault().code), ran.fault().text());
  for (const auto& each : memory) CHECK_MSG(each->whole(), "a write outside of a tensor");
  return ran.ok() ? End::Run : End::NotRun;
}

}  // namespace

TEST(what_the_checker_lets_through_runs) {
  const char* wanted = std::getenv("PYQUANT_RANDOM_RUNS");
  const long runs = wanted ? std::atol(wanted) : 100'000;
  run::RandomOperator random(7);
  const auto workspace = std::make_shared<Workspace>(2);
  std::map<std::string, int> ran, unsupported;
  const auto& ops = all_ops();
  for (long i = 0; i < runs; ++i) {
    const OpInfo& op = ops[static_cast<size_t>(i) % ops.size()];
    const check::Context here("operator ", op.name, ", run ", i);
    if (run_model(random.draw(op), random, workspace) == End::Run) ++ran[op.name];
  }
  for (const OpInfo& op : ops)
    CHECK_MSG(ran[op.name] > 0, std::string(op.name) + " never ran: the draws are too wild");
}
