// SPDX-License-Identifier: Apache-2.0
// pyquant-circle plan: a file back to its plan and weights, so that `write` gives the same bytes again.
#include <cstdio>

#include "circle/file.h"
#include "circle/safetensors.h"
#include "cli/cli.h"

namespace pyquant::cli {
namespace {

Status save(const circle::DumpedPlan& plan, const std::string& path, const std::string& weights) {
  PYQUANT_TRY(circle::write_safetensors(plan.weights, weights));
  PYQUANT_TRY_ASSIGN(auto file, circle::AtomicFile::create(path));
  PYQUANT_TRY(file->write({reinterpret_cast<const uint8_t*>(plan.json.data()), plan.json.size()}));
  return file->commit();
}

int run(const Arguments& arguments) {
  if (!arguments.has("-o") || !arguments.has("--weights")) {
    complain(std::string("options -o and --weights are needed; usage: pyquant-circle ") + kPlan.usage);
    return kFailed;
  }
  const std::string path = arguments.get("-o"), weights = arguments.get("--weights");
  if (!are_apart({arguments.positionals[0], path, weights})) return kFailed;
  const auto model = circle::read_file(arguments.positionals[0]);
  if (!model.ok()) {
    complain(model.fault().text());
    return kFailed;
  }
  const auto plan = circle::dump_plan(model.value());
  if (!plan.ok()) {
    complain(plan.fault().text());
    return kFailed;
  }
  const Status saved = save(plan.value(), path, weights);
  if (!saved.ok()) {
    complain(saved.fault().text());
    return kFailed;
  }
  size_t tensors = 0, operators = 0;
  for (const circle::Graph& graph : model.value().graphs) {
    tensors += graph.tensors.size();
    operators += graph.operators.size();
  }
  std::printf("%s: %zu tensors, %zu operators; %s: %zu constants\n", path.c_str(), tensors, operators,
              weights.c_str(), plan.value().weights.size());
  return kFine;
}

}  // namespace

const Verb kPlan = {"plan",
                    "plan x.circle -o plan.json --weights w.safetensors",
                    "converts a file to the plan and weights that `write` makes it from",
                    {{"-o", "a file"}, {"--weights", "a file"}},
                    1,
                    run};

}  // namespace pyquant::cli
