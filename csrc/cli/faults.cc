// SPDX-License-Identifier: Apache-2.0
// pyquant-circle faults: every code that check, write and read can give, and what it means.
#include <cstdio>

#include "cli/cli.h"

namespace pyquant::cli {
namespace {

int run(const Arguments&) {
  for (const CodeInfo& code : kCodes) std::printf("%-24s %s\n", code.name, code.meaning);
  return kFine;
}

}  // namespace

const Verb kFaults = {"faults", "faults", "lists every fault code and what it means", {}, 0, run};

}  // namespace pyquant::cli
