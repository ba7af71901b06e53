// SPDX-License-Identifier: Apache-2.0
// Typed steps from JSON values to C++ values, each with the error that says what was seen, expected, and
// where. Which keys and values a plan has is left to plan_parse.cc and plan_operator.cc.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "circle/ir.h"
#include "circle/json.h"
#include "pyquant/status.h"

namespace pyquant::circle {

class PlanReader {
 public:
  /// `what` names the text in messages, and outlives this.
  explicit PlanReader(const std::string& what) : what_(what) {}

  Fault bad(Code code, const json::Value& at, const std::string& path, const std::string& message) const;
  Status expect(const json::Value& value, json::Kind kind, const std::string& path) const;
  /// Only `known` keys, and all `required` ones.
  Status keys(const json::Value& value, const std::string& path, std::initializer_list<const char*> known,
              std::initializer_list<const char*> required) const;
  /// A string, left as it is when the key is absent.
  Status text(const json::Value& object, const std::string& path, const char* key, std::string& out) const;
  Status int32(const json::Value& value, const std::string& path, int32_t& out) const;
  Status ints(const json::Value& value, const std::string& path, std::vector<int32_t>& out) const;
  /// One operator with all its options; those that the text leaves out have the schema's defaults.
  Status operation(const json::Value& value, const std::string& path, Operator& op) const;

 private:
  Status option(const json::Value& value, const std::string& path, const std::string& key,
                Operator& op) const;

  const std::string& what_;
};

}  // namespace pyquant::circle
