// SPDX-License-Identifier: Apache-2.0
// Typed reading of a manifest's JSON. A Field is a value with its path; a wrong or missing one is noted once
// in the Fields of the text, and reading goes on with a default, so that readers need no branches.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "circle/json.h"
#include "pyquant/status.h"

namespace pyquant::host {

/// What went wrong first while a text was read.
struct Fields {
  std::string file;
  std::optional<Fault> fault;

  void note(const std::string& path, const circle::json::Value* at, const std::string& text);
  Status status() const;
};

class Field {
 public:
  Field(Fields& fields, const circle::json::Value* value, std::string path)
      : fields_(&fields), value_(value), path_(std::move(path)) {}

  /// True unless the value is absent or null.
  bool present() const { return value_ && value_->kind != circle::json::Kind::Null; }
  /// A key of this object; it may be absent.
  Field operator[](const std::string& key) const;
  std::vector<Field> items() const;
  std::vector<std::pair<std::string, Field>> entries() const;

  int64_t integer(int64_t least, int64_t most = int64_t{1} << 40) const;
  int64_t integer_or(int64_t otherwise, int64_t least) const {
    return present() ? integer(least) : otherwise;
  }
  float number() const;
  std::string text() const;
  std::string text_or(const std::string& otherwise) const { return present() ? text() : otherwise; }
  bool boolean() const;
  std::vector<int64_t> integers(int64_t least, int64_t most = int64_t{1} << 40) const;
  std::vector<std::string> texts() const;

  /// Notes that the value is not what `text` says.
  void fail(const std::string& text) const { fields_->note(path_, value_, text); }
  const std::string& path() const { return path_; }
  const circle::json::Value* value() const { return value_; }

 private:
  bool is(circle::json::Kind kind, const char* expected) const;

  Fields* fields_;
  const circle::json::Value* value_;
  std::string path_;
};

}  // namespace pyquant::host
