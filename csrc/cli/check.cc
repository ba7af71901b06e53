// SPDX-License-Identifier: Apache-2.0
// pyquant-circle check: everything that is wrong with a file, one fault a line.
#include <cstdio>

#include "cli/cli.h"

namespace pyquant::cli {
namespace {

int run(const Arguments& arguments) {
  circle::Target target = circle::Target::Circle;
  if (!target_of(arguments, target)) return kFailed;
  const std::string& path = arguments.positionals[0];
  const auto model = circle::read_file(path);
  if (!model.ok()) {
    complain(model.fault().text());
    return kFailed;
  }
  const auto faults = circle::check(model.value(), target);
  for (const Fault& fault : faults) std::printf("%s\n", fault.text().c_str());
  std::printf("%s: %zu faults for target %s\n", path.c_str(), faults.size(),
              arguments.get("--target", "circle").c_str());
  return faults.empty() ? kFine : kFound;
}

}  // namespace

const Verb kCheck = {"check",
                     "check [--target circle|luci|onert] x.circle",
                     "prints every fault of a file, by the rules of a target",
                     {{"--target", "a target"}},
                     1,
                     run};

}  // namespace pyquant::cli
