// SPDX-License-Identifier: Apache-2.0
// All of a test framework that the native tests need: named tests, checks that say what they saw, and an exit
// code.
//
//   TEST(zero_maps_to_zero) { CHECK_EQ(dequantize_value(0, {0.5f, 0}), 0.0f); }
//
// Link tests/cpp/main.cc, which runs all tests, or those whose names contain its first argument.
#pragma once

#include <cstdint>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

/// Where a failure happened, beyond file and line: set by Context, printed with the failure.
inline std::vector<std::string>& contexts() {
  static std::vector<std::string> all;
  return all;
}

/// Context here("length ", n); names the case that is being checked until it goes out of scope.
struct Context {
  template <class... Parts>
  explicit Context(const Parts&... parts) {
    std::ostringstream text;
    ((text << parts), ...);
    contexts().push_back(text.str());
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { contexts().pop_back(); }
};

inline void fail(const char* file, int line, const std::string& text) {
  if (++failures() > 20) return;  // the first ones suffice
  std::cerr << file << ":" << line << ": " << text;
  for (const std::string& context : contexts()) std::cerr << " [" << context << "]";
  std::cerr << "\n";
}

template <class A, class B>
void equal(const char* file, int line, const char* a_text, const char* b_text, const A& a, const B& b) {
  if (a == b) return;
  std::ostringstream text;
  text.precision(9);
  text << a_text << " == " << b_text << ": " << +a << " != " << +b;
  fail(file, line, text.str());
}
inline void equal(const char* file, int line, const char* a_text, const char* b_text, const std::string& a,
                  const std::string& b) {
  if (a != b) fail(file, line, std::string(a_text) + " == " + b_text + ": \"" + a + "\" != \"" + b + "\"");
}
inline void equal(const char* file, int line, const char* a_text, const char* b_text, const std::string& a,
                  const char* b) {
  equal(file, line, a_text, b_text, a, std::string(b));
}

/// The same bits: -0 differs from +0, and a NaN equals itself.
template <class T>
void same_bits(const char* file, int line, const char* text, const T& a, const T& b) {
  if (std::memcmp(&a, &b, sizeof(T)) == 0) return;
  std::ostringstream out;
  out << text << ": bits ";
  for (const T* value : {&a, &b}) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(value);
    out << (value == &b ? " != 0x" : "0x") << std::hex;
    for (size_t i = sizeof(T); i-- > 0;) out << (bytes[i] >> 4) << (bytes[i] & 15);
  }
  fail(file, line, out.str());
}

}  // namespace check

#define TEST(name)                                                  \
  static void test_##name();                                        \
  static const check::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                           \
  do {                                                             \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition); \
  } while (false)
#define CHECK_EQ(a, b) check::equal(__FILE__, __LINE__, #a, #b, a, b)
#define CHECK_BITS(a, b) check::same_bits(__FILE__, __LINE__, #a " and " #b, a, b)
/// Records `message`, which is only made when the condition fails.
#define CHECK_MSG(condition, message)                           \
  do {                                                          \
    if (!(condition)) check::fail(__FILE__, __LINE__, message); \
  } while (false)
