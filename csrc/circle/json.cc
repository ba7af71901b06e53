// SPDX-License-Identifier: Apache-2.0
// The parser behind json.h: recursive descent with a depth limit, one pass, no look-back.
#include "circle/json.h"

#include <charconv>
#include <cmath>
#include <unordered_set>

namespace pyquant::circle::json {
namespace {

constexpr int kMostDepth = 32;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  Parser(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  Result<Value> document() {
    Value value;
    PYQUANT_TRY(parse_value(value, 0));
    skip_space();
    if (pos_ != text_.size()) return syntax("the end of the text");
    return value;
  }

 private:
  Fault fault(Code code, const std::string& message) const {
    return {code, message,
            what_ + ", line " + std::to_string(line_) + ", column " + std::to_string(column())};
  }

  Fault syntax(const std::string& expected) const {
    std::string seen = "the end of the text";
    if (pos_ < text_.size()) {
      const auto c = static_cast<unsigned char>(text_[pos_]);
      seen = c >= 0x20 && c < 0x7f ? "'" + std::string(1, text_[pos_]) + "'" : "byte " + std::to_string(c);
    }
    return fault(Code::E_JSON_SYNTAX, "saw " + seen + ", expected " + expected);
  }

  size_t column() const { return pos_ - line_start_ + 1; }
  bool at(char c) const { return pos_ < text_.size() && text_[pos_] == c; }

  void skip_space() {
    while (pos_ < text_.size()) {
      const char c = text_[pos_];
      if (c == '\n') {
        ++line_;
        line_start_ = pos_ + 1;
      } else if (c != ' ' && c != '\t' && c != '\r') {
        return;
      }
      ++pos_;
    }
  }

  Status parse_value(Value& value, int depth) {
    skip_space();
    value.line = static_cast<uint32_t>(line_);
    value.column = static_cast<uint32_t>(column());
    if (depth > kMostDepth) {
      return fault(Code::E_JSON_DEPTH, "nested deeper than " + std::to_string(kMostDepth) + " levels");
    }
    if (pos_ == text_.size()) return syntax("a value");
    switch (text_[pos_]) {
      case '{':
        return parse_object(value, depth);
      case '[':
        return parse_array(value, depth);
      case '"':
        value.kind = Kind::String;
        return parse_string(value.text);
      case 't':
        return parse_word("true", value, Kind::Bool, true);
      case 'f':
        return parse_word("false", value, Kind::Bool, false);
      case 'n':
        return parse_word("null", value, Kind::Null, false);
      default:
        return parse_number(value);
    }
  }

  Status parse_word(std::string_view word, Value& value, Kind kind, bool boolean) {
    if (text_.substr(pos_, word.size()) != word) return syntax("'" + std::string(word) + "'");
    pos_ += word.size();
    value.kind = kind;
    value.boolean = boolean;
    return {};
  }

  Status parse_number(Value& value) {
    const size_t start = pos_;
    if (at('-')) ++pos_;
    if (!digit()) return syntax("a value (JSON has no NaN or Infinity)");
    if (at('0')) {
      ++pos_;
    } else {
      digits();
    }
    if (at('.')) {
      ++pos_;
      if (!digit()) return syntax("a digit after '.'");
      digits();
    }
    if (at('e') || at('E')) {
      ++pos_;
      if (at('+') || at('-')) ++pos_;
      if (!digit()) return syntax("a digit in the exponent");
      digits();
    }
    value.kind = Kind::Number;
    value.text.assign(text_.substr(start, pos_ - start));
    return {};
  }

  bool digit() const { return pos_ < text_.size() && is_digit(text_[pos_]); }
  void digits() {
    while (digit()) ++pos_;
  }

  Status parse_array(Value& value, int depth) {
    value.kind = Kind::Array;
    ++pos_;
    skip_space();
    if (at(']')) {
      ++pos_;
      return {};
    }
    while (true) {
      PYQUANT_TRY(parse_value(value.items.emplace_back(), depth + 1));
      skip_space();
      if (at(']')) break;
      if (!at(',')) return syntax("',' or ']'");
      ++pos_;
    }
    ++pos_;
    return {};
  }

  Status parse_object(Value& value, int depth) {
    value.kind = Kind::Object;
    std::unordered_set<std::string> seen;
    ++pos_;
    skip_space();
    if (at('}')) {
      ++pos_;
      return {};
    }
    while (true) {
      skip_space();
      if (!at('"')) return syntax("a key in quotes");
      std::string key;
      PYQUANT_TRY(parse_string(key));
      if (!seen.insert(key).second) {
        return fault(Code::E_JSON_DUPLICATE_KEY, "key '" + key + "' occurs twice in one object");
      }
      skip_space();
      if (!at(':')) return syntax("':'");
      ++pos_;
      value.keys.push_back(std::move(key));
      PYQUANT_TRY(parse_value(value.items.emplace_back(), depth + 1));
      skip_space();
      if (at('}')) break;
      if (!at(',')) return syntax("',' or '}'");
      ++pos_;
    }
    ++pos_;
    return {};
  }

  Status parse_string(std::string& out) {
    ++pos_;  // the opening quote
    while (true) {
      const size_t start = pos_;
      while (pos_ < text_.size() && text_[pos_] != '"' && text_[pos_] != '\\' &&
             static_cast<unsigned char>(text_[pos_]) >= 0x20) {
        ++pos_;
      }
      out.append(text_.substr(start, pos_ - start));
      if (pos_ == text_.size()) return syntax("'\"'");
      if (text_[pos_] == '"') break;
      if (text_[pos_] != '\\') return syntax("a character that needs no escape");
      ++pos_;
      PYQUANT_TRY(parse_escape(out));
    }
    ++pos_;
    return {};
  }

  Status parse_escape(std::string& out) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    if (pos_ == text_.size()) return syntax("an escape");
    if (text_[pos_] == 'u') {
      uint32_t point = 0;
      PYQUANT_TRY(parse_hex(point));
      if (point >= 0xdc00 && point < 0xe000) return syntax("a high surrogate before a low one");
      if (point >= 0xd800 && point < 0xdc00) {
        uint32_t low = 0;
        if (text_.substr(pos_, 2) != "\\u") return syntax("a low surrogate");
        ++pos_;
        PYQUANT_TRY(parse_hex(low));
        if (low < 0xdc00 || low >= 0xe000) return syntax("a low surrogate");
        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
      }
      append_utf8(out, point);
      return {};
    }
    const size_t which = kFrom.find(text_[pos_]);
    if (which == std::string_view::npos) return syntax("one of \" \\ / b f n r t u after '\\'");
    out += kTo[which];
    ++pos_;
    return {};
  }

  Status parse_hex(uint32_t& out) {
    ++pos_;  // the u
    const auto digits = text_.substr(pos_, 4);
    const auto end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, out, 16);
    if (digits.size() != 4 || stop != end || error != std::errc()) return syntax("four hexadecimal digits");
    pos_ += 4;
    return {};
  }

  static void append_utf8(std::string& out, uint32_t point) {
    if (point < 0x80) {
      out += static_cast<char>(point);
      return;
    }
    const int extra = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static constexpr uint32_t kLead[] = {0, 0xc0, 0xe0, 0xf0};
    out += static_cast<char>(kLead[extra] | (point >> (6 * extra)));
    for (int i = extra - 1; i >= 0; --i) out += static_cast<char>(0x80 | ((point >> (6 * i)) & 0x3f));
  }

  std::string_view text_;
  const std::string& what_;
  size_t pos_ = 0;
  size_t line_ = 1;
  size_t line_start_ = 0;
};

}  // namespace

const Value* Value::find(std::string_view key) const {
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] == key) return &items[i];
  }
  return nullptr;
}

std::string Value::place() const {
  return "line " + std::to_string(line) + ", column " + std::to_string(column);
}

bool Value::as_int(int64_t& out) const {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, out);
  return kind == Kind::Number && error == std::errc() && stop == end;
}

bool Value::as_float(float& out) const {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, out);
  return kind == Kind::Number && error == std::errc() && stop == end;
}

const char* kind_name(Kind kind) {
  static const char* const names[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
  return names[static_cast<size_t>(kind)];
}

Result<Value> parse(std::string_view text, const std::string& what) { return Parser(text, what).document(); }

void append_quoted(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += "\\u00";
      out += kHex[(c >> 4) & 15];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

void append_float(std::string& out, float value) {
  char digits[64];
  const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), value);
  out.append(digits, end);
}

}  // namespace pyquant::circle::json
