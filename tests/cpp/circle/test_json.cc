// SPDX-License-Identifier: Apache-2.0
// The JSON reader: what it accepts, what it rejects and the place in the error.
#include "circle/json.h"

#include <limits>

#include "check.h"

namespace json = pyquant::circle::json;

namespace {

json::Value good(const std::string& text) {
  auto value = json::parse(text, "t");
  CHECK_MSG(value.ok(), text + ": " + (value.ok() ? "" : value.fault().text()));
  return value.ok() ? std::move(value).value() : json::Value();
}

std::string fault(const std::string& text) {
  const auto value = json::parse(text, "t");
  return value.ok() ? "accepted" : value.fault().text();
}

std::string quoted(const std::string& text) {
  std::string out;
  json::append_quoted(out, text);
  return out;
}

}  // namespace

TEST(json_values) {
  const auto value = good(R"( {"a": [1, -2.5e3, true, false, null], "b": {}, "c": "x"} )");
  CHECK_EQ(value.items.size(), size_t{3});
  CHECK_EQ(value.find("a")->items.size(), size_t{5});
  CHECK_EQ(value.find("a")->items[1].text, "-2.5e3");
  CHECK(value.find("a")->items[2].boolean);
  CHECK(value.find("b")->items.empty());
  CHECK(value.find("z") == nullptr);
}

TEST(json_strings) {
  CHECK_EQ(good(R"("\"\\\/\b\f\n\r\t")").text, "\"\\/\b\f\n\r\t");
  CHECK_EQ(good(R"("\u00e9\u20AC\ud83d\ude00")").text, "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK_EQ(good("\"\\u0000\"").text, std::string(1, '\0'));
  for (const std::string text : {"plain", "quote \" back \\ slash", "new\nline\x01", "\xe2\x82\xac"}) {
    CHECK_EQ(good(quoted(text)).text, text);
  }
}

TEST(json_numbers) {
  int64_t i = 0;
  float f = 0;
  CHECK(good("-9223372036854775808").as_int(i) && i == std::numeric_limits<int64_t>::min());
  CHECK(!good("9223372036854775808").as_int(i));
  CHECK(!good("1.0").as_int(i));
  CHECK(!good("\"1\"").as_int(i));
  CHECK(good("0.1").as_float(f) && f == 0.1f);
  CHECK(!good("1e39").as_float(f));
  for (float value : {0.1f, 1e-45f, 3.4028235e38f, 0.003921569f, 1.0f / 3, 16777216.0f}) {
    std::string text;
    json::append_float(text, value);
    CHECK(good(text).as_float(f) && f == value);
  }
}

TEST(json_refuses) {
  for (const std::string text : {"",
                                 " ",
                                 "{",
                                 "}",
                                 "[",
                                 "[1",
                                 "[1,",
                                 "[1,]",
                                 "[,1]",
                                 "{\"a\"}",
                                 "{\"a\":}",
                                 "{\"a\":1,}",
                                 "{a:1}",
                                 "{1:1}",
                                 "nul",
                                 "TRUE",
                                 "01",
                                 "1.",
                                 ".5",
                                 "+1",
                                 "-",
                                 "1e",
                                 "1e+",
                                 "NaN",
                                 "Infinity",
                                 "\"",
                                 "\"\\x\"",
                                 "\"\\u12\"",
                                 "\"\\ud800\"",
                                 "\"\\ud800\\u0041\"",
                                 "\"\\udc00\"",
                                 "\"a\nb\"",
                                 "1 2",
                                 "[] []",
                                 "{\"a\":1 \"b\":2}",
                                 "'a'"}) {
    CHECK_MSG(fault(text).rfind("E_JSON_SYNTAX: t, line ", 0) == 0, text + " -> " + fault(text));
  }
  CHECK_EQ(fault("{\n \"a\": 1,\n \"a\": 2}").rfind("E_JSON_DUPLICATE_KEY: t, line 3, column ", 0),
           size_t{0});
  CHECK_EQ(fault(std::string(40, '[')).rfind("E_JSON_DEPTH", 0), size_t{0});
  CHECK_EQ(fault(std::string(1000000, '[')).rfind("E_JSON_DEPTH", 0), size_t{0});
}

TEST(json_says_where) {
  CHECK_EQ(fault("{\"a\": 1,\n  \"b\": nul}"),
           "E_JSON_SYNTAX: t, line 2, column 8: saw 'n', expected 'null'");
  CHECK_EQ(fault("[1, 2"),
           "E_JSON_SYNTAX: t, line 1, column 6: saw the end of the text, expected ',' or ']'");
  CHECK_EQ(fault("[\x01]"),
           "E_JSON_SYNTAX: t, line 1, column 2: saw byte 1, expected a value (JSON has no NaN or Infinity)");
}
