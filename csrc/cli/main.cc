// SPDX-License-Identifier: Apache-2.0
// pyquant-circle: finds the verb and runs it. What a verb does is in the file of its name.
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>

#include "cli/cli.h"

namespace {

using pyquant::cli::Verb;

const Verb* const kVerbs[] = {&pyquant::cli::kWrite,    &pyquant::cli::kInspect, &pyquant::cli::kCheck,
                              &pyquant::cli::kDiff,     &pyquant::cli::kPlan,    &pyquant::cli::kRun,
                              &pyquant::cli::kGenerate, &pyquant::cli::kFaults};

int print_help() {
  std::printf(
      "pyquant-circle %s: writes, reads, checks, compares and runs .circle files, generates with bundles\n\n"
      "usage:\n",
      PYQUANT_VERSION);
  for (const Verb* verb : kVerbs) std::printf("  pyquant-circle %s\n      %s\n", verb->usage, verb->help);
  std::printf(
      "  pyquant-circle --version\n"
      "  pyquant-circle [verb] --help\n\n"
      "exit codes: 0 fine, 1 faults or differences found, 2 wrong usage or a file that cannot be read or "
      "written\n");
  return pyquant::cli::kFine;
}

std::string verb_names() {
  std::string names;
  for (const Verb* verb : kVerbs) names += (names.empty() ? "" : ", ") + std::string(verb->name);
  return names;
}

int run(const Verb& verb, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (word != "--help" && word != "-h") continue;
    std::printf("usage: pyquant-circle %s\n  %s\n", verb.usage, verb.help);
    return pyquant::cli::kFine;
  }
  pyquant::cli::Arguments arguments;
  std::string error;
  if (!pyquant::cli::parse_arguments(verb, words, arguments, error)) {
    pyquant::cli::complain(error + "; usage: pyquant-circle " + verb.usage);
    return pyquant::cli::kFailed;
  }
  int code = pyquant::cli::kFailed;
  try {
    code = verb.run(arguments);
  } catch (const std::bad_alloc&) {
    pyquant::cli::complain("the system has no more memory for this process (see ulimit -v)");
    return pyquant::cli::kFailed;
  }
  // What was printed must have arrived too, on a full disk for instance.
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    pyquant::cli::complain(std::string("cannot write to the standard output (") + std::strerror(errno) + ")");
    return pyquant::cli::kFailed;
  }
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is an error to report, not a way to die
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") return print_help();
  if (words[0] == "--version") {
    std::printf("pyquant-circle %s\n", PYQUANT_VERSION);
    return pyquant::cli::kFine;
  }
  for (const Verb* verb : kVerbs) {
    if (words[0] == verb->name) return run(*verb, {words.begin() + 1, words.end()});
  }
  pyquant::cli::complain("verb '" + words[0] + "' is unknown, expected one of " + verb_names() +
                         "; see --help");
  return pyquant::cli::kFailed;
}
