// SPDX-License-Identifier: Apache-2.0
#include "guarded_run.h"

#include <algorithm>
#include <cstdlib>

namespace run {

using namespace pyquant::run;  // NOLINT: a test

namespace {

// Not E_RUN_UNSUPPORTED: what the checker lets through has a kernel.
bool expected_code(pyquant::Code code) {
  return code == pyquant::Code::E_RUN_VALUE || code == pyquant::Code::E_RUN_SHAPE ||
         code == pyquant::Code::E_RUN_MEMORY;
}

}  // namespace

long random_runs(long runs) {
  const char* wanted = std::getenv("PYQUANT_RANDOM_RUNS");
  return wanted ? std::atol(wanted) : runs;
}

Ran run_guarded(pyquant::circle::Model model, const std::shared_ptr<Workspace>& workspace, const Fill& fill) {
  Ran ran;
  auto program = Program::from_model(std::move(model), "random");
  if (!program.ok()) return ran;
  ran.program = program.value();
  ran.end = End::NotRun;
  Runner runner(program.value(), workspace, {kGuardedLimit});
  const auto planned = runner.prepare();
  if (!planned.ok()) {
    CHECK_MSG(expected_code(planned.fault().code), planned.fault().text());
    return ran;
  }
  std::vector<std::unique_ptr<Guarded>> memory;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  const auto guarded = [&memory](int64_t bytes) -> Guarded& {
    return *memory.emplace_back(std::make_unique<Guarded>(static_cast<size_t>(bytes)));
  };
  for (size_t i = 0; i < runner.inputs().size(); ++i) {
    Guarded& place = guarded(runner.input_bytes(i));
    const auto& values = ran.inputs.emplace_back(fill(*runner.inputs()[i].tensor, place.size));
    std::copy(values.begin(), values.end(), place.data());
    inputs.push_back(place.data());
  }
  for (size_t k = 0; k < runner.outputs().size(); ++k)
    outputs.push_back(guarded(runner.output_bytes(k)).data());
  const auto done = runner.run(inputs, outputs);
  if (!done.ok()) CHECK_MSG(expected_code(done.fault().code), done.fault().text());
  for (const auto& each : memory) CHECK_MSG(each->whole(), "a write outside of a tensor");
  for (size_t i = 0; i < ran.inputs.size(); ++i)
    CHECK_MSG(std::equal(ran.inputs[i].begin(), ran.inputs[i].end(), memory[i]->data()),
              "an input was written");
  if (!done.ok()) return ran;
  ran.end = End::Run;
  for (size_t k = 0; k < outputs.size(); ++k) {
    const auto* bytes = static_cast<const uint8_t*>(outputs[k]);
    ran.outputs.emplace_back(bytes, bytes + runner.output_bytes(k));
  }
  return ran;
}

}  // namespace run
