// SPDX-License-Identifier: Apache-2.0
// pyquant-circle check: every fault of a file, similar ones on one line.
#include <cctype>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cli/cli.h"

namespace pyquant::cli {
namespace {

constexpr size_t kNamed = 3;  // other places that a line names

/// A text without what differs between similar faults: names in quotes, shapes in brackets, numbers.
std::string skeleton(std::string_view text) {
  std::string kept;
  char until = 0;
  for (char c : text) {
    if (until) {
      if (c == until) until = 0;
    } else if (c == '\'' || c == '[') {
      until = c == '[' ? ']' : c;
    } else if (!std::isdigit(static_cast<unsigned char>(c)) && c != '.' && c != '-') {
      kept += c;
    }
  }
  return kept;
}

/// The first fault of each kind, and where the others are; kinds in order of their first.
void print(const std::vector<Fault>& faults) {
  std::map<std::string, size_t> number;
  std::vector<std::vector<const Fault*>> groups;
  for (const Fault& fault : faults) {
    const std::string kind = code_name(fault.code) + skeleton(fault.where) + ": " + skeleton(fault.message);
    const auto [at, fresh] = number.try_emplace(kind, groups.size());
    if (fresh) groups.emplace_back();
    groups[at->second].push_back(&fault);
  }
  for (const auto& group : groups) {
    std::string line = group[0]->text();
    if (group.size() > 1) line += " (and " + std::to_string(group.size() - 1) + " more like it: ";
    for (size_t i = 1; i < group.size() && i <= kNamed; ++i) line += (i > 1 ? ", " : "") + group[i]->where;
    if (group.size() > 1) line += group.size() - 1 > kNamed ? ", ...)" : ")";
    std::printf("%s\n", line.c_str());
  }
}

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
  print(faults);
  std::printf("%s: %zu faults for target %s\n", path.c_str(), faults.size(),
              arguments.get("--target", "circle").c_str());
  return faults.empty() ? kFine : kFound;
}

}  // namespace

const Verb kCheck = {"check",
                     "check [--target circle|luci|onert] x.circle",
                     "prints the faults of a file, by the rules of a target; similar ones on one line",
                     {{"--target", "a target"}},
                     1,
                     run};

}  // namespace pyquant::cli
