// SPDX-License-Identifier: Apache-2.0
// The steps of plan_reader.h.
#include "circle/plan_reader.h"

#include <algorithm>
#include <limits>

namespace pyquant::circle {

using json::Kind;
using json::Value;

Fault PlanReader::bad(Code code, const Value& at, const std::string& path, const std::string& message) const {
  return {code, message, what_ + ", " + at.place() + ", " + path};
}

Status PlanReader::expect(const Value& value, Kind kind, const std::string& path) const {
  if (value.kind == kind) return {};
  return bad(Code::E_PLAN_TYPE, value, path,
             std::string("saw ") + json::kind_name(value.kind) + ", expected " + json::kind_name(kind));
}

Status PlanReader::keys(const Value& value, const std::string& path, std::initializer_list<const char*> known,
                        std::initializer_list<const char*> required) const {
  for (const std::string& key : value.keys) {
    const auto is_key = [&key](const char* name) { return key == name; };
    if (std::any_of(known.begin(), known.end(), is_key)) continue;
    std::string list;
    for (const char* name : known) list += (list.empty() ? "" : ", ") + std::string(name);
    return bad(Code::E_PLAN_KEY, *value.find(key), path,
               "unknown key '" + key + "', expected one of " + list);
  }
  for (const char* name : required) {
    if (!value.find(name)) {
      return bad(Code::E_PLAN_KEY, value, path, "key '" + std::string(name) + "' is missing");
    }
  }
  return {};
}

Status PlanReader::text(const Value& object, const std::string& path, const char* key,
                        std::string& out) const {
  const Value* value = object.find(key);
  if (!value) return {};
  PYQUANT_TRY(expect(*value, Kind::String, path + "." + key));
  out = value->text;
  return {};
}

Status PlanReader::int32(const Value& value, const std::string& path, int32_t& out) const {
  int64_t wide = 0;
  PYQUANT_TRY(expect(value, Kind::Number, path));
  if (!value.as_int(wide) || wide < std::numeric_limits<int32_t>::min() ||
      wide > std::numeric_limits<int32_t>::max()) {
    return bad(Code::E_PLAN_VALUE, value, path, "saw " + value.text + ", expected an integer of 32 bits");
  }
  out = static_cast<int32_t>(wide);
  return {};
}

Status PlanReader::ints(const Value& value, const std::string& path, std::vector<int32_t>& out) const {
  PYQUANT_TRY(expect(value, Kind::Array, path));
  out.resize(value.items.size());
  for (size_t i = 0; i < out.size(); ++i) {
    PYQUANT_TRY(int32(value.items[i], path + "[" + std::to_string(i) + "]", out[i]));
  }
  return {};
}

}  // namespace pyquant::circle
