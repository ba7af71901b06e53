// SPDX-License-Identifier: Apache-2.0
// Graphs of several operators: the plan (places, lifetimes, tensors that share memory, integers that are
// computed beforehand) changes no result, and graphs with one thing changed stay within their tensors.
// PYQUANT_RANDOM_RUNS=1000000 runs longer.
#include <map>

#include "check.h"
#include "guarded_run.h"
#include "random_graph.h"

namespace {

using namespace pyquant::circle;  // NOLINT: a test
using pyquant::run::Program;
using pyquant::run::Runner;
using pyquant::run::Workspace;
using Values = std::map<std::string, std::vector<uint8_t>>;

/// Runs one operator by itself on `values`, which get its outputs.
void run_alone(const Program& program, size_t op, const std::shared_ptr<Workspace>& workspace,
               Values& values) {
  const auto alone = program.operation(op);
  CHECK_MSG(alone.ok(), alone.ok() ? "" : alone.fault().text());
  Runner runner(alone.value(), workspace);
  CHECK(runner.prepare().ok());
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  std::vector<std::vector<uint8_t>> made;
  for (const auto& port : runner.inputs()) inputs.push_back(values.at(port.tensor->name).data());
  for (size_t k = 0; k < runner.outputs().size(); ++k)
    made.emplace_back(static_cast<size_t>(runner.output_bytes(k)));
  for (auto& each : made) outputs.push_back(each.data());
  CHECK(runner.run(inputs, outputs).ok());
  for (size_t k = 0; k < made.size(); ++k) values[runner.outputs()[k].tensor->name] = std::move(made[k]);
}

}  // namespace

TEST(a_plan_changes_no_result) {
  run::RandomGraph random(11);
  const auto two = std::make_shared<Workspace>(2), one = std::make_shared<Workspace>(1);
  const long runs = run::random_runs(20'000) / 4;
  long ran = 0, operators = 0;
  for (long i = 0; i < runs; ++i) {
    const check::Context here("run ", i);
    const run::Ran whole = run::run_guarded(
        random.draw(24), two, [&random](const Tensor&, size_t count) { return random.bytes(count); });
    if (whole.end != run::End::Run) continue;
    ++ran;
    const Program& program = *whole.program;
    Values values;
    for (size_t k = 0; k < whole.inputs.size(); ++k)
      values[program.inputs()[k].tensor->name] = whole.inputs[k];
    for (const Tensor& t : program.graph().tensors) {
      if (!program.model().is_constant(t)) continue;
      const Bytes bytes = program.model().buffers[t.buffer].bytes;
      values[t.name].assign(bytes.data, bytes.data + bytes.size);
    }
    for (size_t op = 0; op < program.graph().operators.size(); ++op) run_alone(program, op, one, values);
    operators += static_cast<long>(program.graph().operators.size());
    for (size_t k = 0; k < whole.outputs.size(); ++k) {
      const std::string& name = program.outputs()[k].tensor->name;
      CHECK_MSG(values.at(name) == whole.outputs[k], "output " + name + " depends on the plan");
    }
  }
  CHECK_MSG(ran * 10 > runs * 9, "only " + std::to_string(ran) + " graphs ran: the draws are too wild");
  CHECK(operators > 5 * ran);
}

TEST(a_changed_graph_stays_within_its_tensors) {
  run::RandomGraph random(12);
  const auto workspace = std::make_shared<Workspace>(2);
  long ran = 0;
  const long runs = run::random_runs(20'000);
  for (long i = 0; i < runs; ++i) {
    const check::Context here("run ", i);
    Model model = random.draw(8);
    for (int changes = 1 + static_cast<int>(i % 3); changes > 0; --changes) random.mutate(model);
    const run::Fill fill = [&random](const Tensor&, size_t count) { return random.bytes(count); };
    ran += run::run_guarded(std::move(model), workspace, fill).end == run::End::Run;
  }
  CHECK_MSG(ran * 20 > runs, "only " + std::to_string(ran) + " graphs ran: the changes are too wild");
}
