// SPDX-License-Identifier: Apache-2.0
// pyquant-circle inspect: the contents of a file.
#include <cstdio>

#include "cli/cli.h"

namespace pyquant::cli {
namespace {

int run(const Arguments& arguments) {
  const std::string& path = arguments.positionals[0];
  const auto model = circle::read_file(path);
  if (!model.ok()) {
    complain(model.fault().text());
    return kFailed;
  }
  const std::string text = arguments.has("--json") ? circle::inspect_json(model.value(), path)
                                                   : circle::inspect_text(model.value(), path);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return kFine;
}

}  // namespace

const Verb kInspect = {"inspect",
                       "inspect [--json] x.circle",
                       "prints the contents of a file, as text or JSON",
                       {{"--json", nullptr}},
                       1,
                       run};

}  // namespace pyquant::cli
