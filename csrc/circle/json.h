// SPDX-License-Identifier: Apache-2.0
// A strict JSON reader for plans and weights headers: values with their place in the text, numbers kept as
// text so that each reader parses exactly the type it wants. What the keys mean is left to plan_parse.cc and
// safetensors.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pyquant/status.h"

namespace pyquant::circle::json {

enum class Kind : uint8_t { Null, Bool, Number, String, Array, Object };

struct Value {
  Kind kind = Kind::Null;
  bool boolean = false;
  uint32_t line = 0;
  uint32_t column = 0;
  std::string text;  // of a string, unescaped; of a number, as written
  std::vector<Value> items;
  std::vector<std::string> keys;  // of an object, beside items

  const Value* find(std::string_view key) const;
  /// "line 3, column 14"
  std::string place() const;
  /// Exact: fails on fractions, exponents and overflow.
  bool as_int(int64_t& out) const;
  /// Correctly rounded to float32; fails on overflow.
  bool as_float(float& out) const;
};

/// "an object", "a number" ... for messages.
const char* kind_name(Kind kind);

/// Parses the whole text. `what` names it in messages ("plan.json"). Never throws; nesting is limited.
Result<Value> parse(std::string_view text, const std::string& what);

/// Appends `text` as a JSON string, quotes included.
void append_quoted(std::string& out, std::string_view text);
/// Appends the shortest decimal text that reads back as the same float32.
void append_float(std::string& out, float value);

}  // namespace pyquant::circle::json
