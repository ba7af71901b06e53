// SPDX-License-Identifier: Apache-2.0
// The command line to Arguments: --name value, --name=value, -o value, flags, positionals in any
// order.
#include <charconv>
#include <cstdio>
#include <system_error>

#include "circle/file.h"
#include "cli/cli.h"

namespace pyquant::cli {

bool parse_arguments(const Verb& verb, const std::vector<std::string>& words, Arguments& out,
                     std::string& error) {
  bool only_positionals = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (only_positionals || word.size() < 2 || word[0] != '-') {
      out.positionals.push_back(word);
      continue;
    }
    if (word == "--") {
      only_positionals = true;
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const Option* option = nullptr;
    for (const Option& known : verb.options) {
      if (name == known.name) option = &known;
    }
    if (!option) {
      error = "unknown option '" + name + "'";
      return false;
    }
    std::string value;
    if (option->value && equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (option->value) {
      if (i + 1 == words.size()) {
        error = "option '" + name + "' wants " + option->value;
        return false;
      }
      value = words[++i];
    } else if (equals != std::string::npos) {
      error = "option '" + name + "' takes no value";
      return false;
    }
    if (!out.options.emplace(name, value).second) {
      error = "option '" + name + "' occurs twice";
      return false;
    }
  }
  if (out.positionals.size() != verb.positionals) {
    error = "saw " + std::to_string(out.positionals.size()) + " file names, expected " +
            std::to_string(verb.positionals);
    return false;
  }
  return true;
}

void complain(const std::string& text) { std::fprintf(stderr, "pyquant-circle: %s\n", text.c_str()); }

bool are_apart(std::initializer_list<std::string> paths) {
  std::map<std::string, std::string> seen;
  for (const std::string& path : paths) {
    if (path.empty()) continue;
    const auto [before, is_new] = seen.emplace(circle::resolved(path), path);
    if (is_new) continue;
    complain("'" + before->second + "' and '" + path +
             "' are one file, and writing would lose it; name another");
    return false;
  }
  return true;
}

bool number_of(const Arguments& arguments, const std::string& name, int64_t lo, int64_t hi, int64_t& out) {
  if (!arguments.has(name)) return true;
  const std::string text = arguments.get(name);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value >= lo && value <= hi) {
    out = value;
    return true;
  }
  complain("option '" + name + "' is '" + text + "', expected an integer from " + std::to_string(lo) +
           " to " + std::to_string(hi));
  return false;
}

bool target_of(const Arguments& arguments, circle::Target& out) {
  const std::string name = arguments.get("--target", "circle");
  const auto target = circle::target_by_name(name);
  if (!target) {
    complain("target '" + name + "' is unknown, expected one of " + circle::target_names());
    return false;
  }
  out = *target;
  return true;
}

}  // namespace pyquant::cli
