// SPDX-License-Identifier: Apache-2.0
// pyquant-circle diff: what differs between two files, one difference a line.
#include <cstdio>

#include "cli/cli.h"

namespace pyquant::cli {
namespace {

int run(const Arguments& arguments) {
  const auto a = circle::read_file(arguments.positionals[0]);
  const auto b = circle::read_file(arguments.positionals[1]);
  for (const auto* model : {&a, &b}) {
    if (model->ok()) continue;
    complain(model->fault().text());
    return kFailed;
  }
  const auto lines = circle::diff(a.value(), b.value());
  for (const std::string& line : lines) std::printf("%s\n", line.c_str());
  return lines.empty() ? kFine : kFound;
}

}  // namespace

const Verb kDiff = {"diff", "diff a.circle b.circle", "prints what differs between two files", {}, 2, run};

}  // namespace pyquant::cli
