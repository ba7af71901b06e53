// SPDX-License-Identifier: Apache-2.0
// What the verbs of pyquant-circle share: arguments, exit codes, one line per error. One file a verb.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "pyquant/circle.h"

namespace pyquant::cli {

/// 0: fine; 1: faults or differences were found; 2: wrong usage, or something that cannot be read or written.
enum Exit { kFine = 0, kFound = 1, kFailed = 2 };

/// One option of a verb. `value` is its placeholder in the usage text; nullptr: a flag.
struct Option {
  const char* name;
  const char* value;
};

struct Verb {
  const char* name;
  const char* usage;
  const char* help;
  std::vector<Option> options;
  size_t positionals;
  int (*run)(const struct Arguments& arguments);
};

struct Arguments {
  std::vector<std::string> positionals;
  std::map<std::string, std::string> options;

  bool has(const std::string& name) const { return options.count(name) > 0; }
  std::string get(const std::string& name, const std::string& fallback = "") const {
    const auto found = options.find(name);
    return found == options.end() ? fallback : found->second;
  }
};

/// Fails with a line that says what was seen and what is expected.
bool parse_arguments(const Verb& verb, const std::vector<std::string>& words, Arguments& out,
                     std::string& error);

/// "pyquant-circle: text" on stderr.
void complain(const std::string& text);
/// True unless two of these paths (empty ones left out) are one file; then complains that writing would lose
/// it.
bool are_apart(std::initializer_list<std::string> paths);
/// The target that --target names; complains and returns false when it is none.
bool target_of(const Arguments& arguments, circle::Target& out);

/// The integer that an option names, lo to hi, left as it is without the option; complains and returns false
/// otherwise.
bool number_of(const Arguments& arguments, const std::string& name, int64_t lo, int64_t hi, int64_t& out);

extern const Verb kWrite, kInspect, kCheck, kDiff, kPlan, kRun, kGenerate, kFaults;

}  // namespace pyquant::cli
