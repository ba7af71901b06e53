// SPDX-License-Identifier: Apache-2.0
// Tensors, operators and option values as JSON fragments in the plan's spelling, shared by plan_dump.cc and
// inspect.cc.
#pragma once

#include <map>
#include <set>
#include <string>

#include "circle/ir.h"

namespace pyquant::circle {

/// "true", "3", "0.5", "[1, 2]", "NONE"; an enum value that the schema does not have is its number.
std::string option_text(const Field& field, const OptionValue& value);
/// The same as JSON: enum spellings in quotes.
std::string option_json(const Field& field, const OptionValue& value);
/// {"name": ..., "dtype": ..., ... without the closing brace, so that the caller may add keys.
std::string tensor_json_open(const Tensor& tensor);
/// {"op": ..., "inputs": [...], "outputs": [...], "options": {...}}
std::string operator_json(const Operator& op);
std::string ints_json(const std::vector<int32_t>& values);
/// {"name": index, ...}
std::string named_json(const std::vector<NamedIndex>& entries);
std::string quoted(std::string_view text);
/// The whole of ops.def: a list of objects.
std::string operators_json();
/// Numbers names that occur several times, in order: "w", "w#2", "w#3".
class UniqueNames {
 public:
  std::string of(const std::string& name);

 private:
  std::set<std::string> taken_;
  std::map<std::string, int> next_;  // without it, a thousand equal names would take a million steps
};
/// Whether a string can be written in JSON text.
bool is_utf8(std::string_view text);

}  // namespace pyquant::circle
