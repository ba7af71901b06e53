// SPDX-License-Identifier: Apache-2.0
// pyquant-circle write: a plan and its weights to a .circle file.
#include <cstdio>

#include "circle/file.h"
#include "circle/safetensors.h"
#include "cli/cli.h"

namespace pyquant::cli {
namespace {

using circle::Layout;

bool layout_of(const Arguments& arguments, Layout& out) {
  const std::string name = arguments.get("--layout", "auto");
  if (name == "auto") out = Layout::Auto;
  if (name == "inline") out = Layout::Inline;
  if (name == "external") out = Layout::External;
  if (name == "auto" || name == "inline" || name == "external") return true;
  complain("layout '" + name + "' is unknown, expected one of auto, inline, external");
  return false;
}

Result<circle::Plan> load(const std::string& path, const Arguments& arguments) {
  PYQUANT_TRY_ASSIGN(const auto mapping, circle::Mapping::open(path));
  const circle::Bytes bytes = mapping->bytes();
  PYQUANT_TRY_ASSIGN(circle::Plan plan,
                     circle::parse_plan({reinterpret_cast<const char*>(bytes.data), bytes.size}, path));
  if (arguments.has("--weights")) {
    PYQUANT_TRY_ASSIGN(const circle::Safetensors weights,
                       circle::read_safetensors(arguments.get("--weights")));
    std::vector<std::string> unused;
    PYQUANT_TRY(circle::bind_constants(plan, weights, &unused));
    if (!unused.empty()) {
      complain("note: " + std::to_string(unused.size()) + " tensors of " + weights.path +
               " are not in the plan, such as '" + unused[0] + "'");
    }
  } else if (!plan.constants.empty()) {
    return Fault{
        Code::E_WEIGHTS_MISSING,
        "has " + std::to_string(plan.constants.size()) + " constants; pass --weights FILE.safetensors", path};
  }
  return plan;
}

int run(const Arguments& arguments) {
  circle::Target target = circle::Target::Circle;
  Layout layout = Layout::Auto;
  if (!target_of(arguments, target) || !layout_of(arguments, layout)) return kFailed;
  if (!arguments.has("-o")) {
    complain(std::string("option -o is missing; usage: pyquant-circle ") + kWrite.usage);
    return kFailed;
  }
  const std::string path = arguments.get("-o");
  if (!are_apart({arguments.positionals[0], path}) || !are_apart({arguments.get("--weights"), path})) {
    return kFailed;
  }
  const auto plan = load(arguments.positionals[0], arguments);
  if (!plan.ok()) {
    complain(plan.fault().text());
    return kFailed;
  }
  const auto faults = circle::check(plan.value().model, target);
  for (const Fault& fault : faults) complain(fault.text());
  if (!faults.empty()) return kFound;
  const auto written = circle::write_file(plan.value().model, path, target, layout);
  if (!written.ok()) {
    complain(written.fault().text());
    return kFailed;
  }
  std::printf(
      "%s: %llu bytes%s\n", path.c_str(), static_cast<unsigned long long>(written.value().bytes),
      written.value().external ? ", external constants (TICO's runtime reads them, onert crashes)" : "");
  return kFine;
}

}  // namespace

const Verb kWrite = {
    "write",
    "write plan.json [--weights w.safetensors] -o x.circle [--target circle|luci|onert] [--layout "
    "auto|inline|external]",
    "checks a plan and writes it, whole or not at all",
    {{"--weights", "a file"}, {"-o", "a file"}, {"--target", "a target"}, {"--layout", "a layout"}},
    1,
    run};

}  // namespace pyquant::cli
