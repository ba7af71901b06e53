// SPDX-License-Identifier: Apache-2.0
#include "host/fields.h"

namespace pyquant::host {
namespace {

using circle::json::Kind;

std::string shown(const circle::json::Value* value) {
  if (!value) return "missing";
  if (value->kind == Kind::String) return "'" + value->text.substr(0, 60) + "'";
  return value->kind == Kind::Number ? value->text.substr(0, 60) : circle::json::kind_name(value->kind);
}

}  // namespace

void Fields::note(const std::string& path, const circle::json::Value* at, const std::string& text) {
  if (!fault)
    fault = Fault{Code::E_MANIFEST, "'" + path + "' " + text, at ? file + ", " + at->place() : file};
}

Status Fields::status() const {
  if (fault) return *fault;
  return {};
}

bool Field::is(Kind kind, const char* expected) const {
  if (value_ && value_->kind == kind) return true;
  fail("is " + shown(value_) + ", expected " + expected);
  return false;
}

Field Field::operator[](const std::string& key) const {
  const std::string path = path_.empty() ? key : path_ + "." + key;
  if (!value_ || value_->kind != Kind::Object) {
    if (value_) fail("is " + shown(value_) + ", expected an object");
    return {*fields_, nullptr, path};
  }
  return {*fields_, value_->find(key), path};
}

std::vector<Field> Field::items() const {
  std::vector<Field> found;
  if (!is(Kind::Array, "a list")) return found;
  for (size_t i = 0; i < value_->items.size(); ++i) {
    found.emplace_back(*fields_, &value_->items[i], path_ + "[" + std::to_string(i) + "]");
  }
  return found;
}

std::vector<std::pair<std::string, Field>> Field::entries() const {
  std::vector<std::pair<std::string, Field>> found;
  if (!is(Kind::Object, "an object")) return found;
  for (size_t i = 0; i < value_->items.size(); ++i) {
    found.emplace_back(value_->keys[i], Field(*fields_, &value_->items[i], path_ + "." + value_->keys[i]));
  }
  return found;
}

int64_t Field::integer(int64_t least, int64_t most) const {
  int64_t out = 0;
  if (!is(Kind::Number, "an integer")) return least;
  if (!value_->as_int(out) || out < least || out > most) {
    fail("is " + shown(value_) + ", expected an integer from " + std::to_string(least) + " to " +
         std::to_string(most));
    return least;
  }
  return out;
}

float Field::number() const {
  float out = 0;
  if (is(Kind::Number, "a number") && !value_->as_float(out)) fail("is " + shown(value_) + ", no float32");
  return out;
}

std::string Field::text() const { return is(Kind::String, "a string") ? value_->text : std::string(); }

bool Field::boolean() const { return is(Kind::Bool, "true or false") && value_->boolean; }

std::vector<int64_t> Field::integers(int64_t least, int64_t most) const {
  std::vector<int64_t> found;
  for (const Field& item : items()) found.push_back(item.integer(least, most));
  return found;
}

std::vector<std::string> Field::texts() const {
  std::vector<std::string> found;
  for (const Field& item : items()) found.push_back(item.text());
  return found;
}

}  // namespace pyquant::host
