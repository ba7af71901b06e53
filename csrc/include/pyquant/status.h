// SPDX-License-Identifier: Apache-2.0
// Errors as values: Fault (code, message, where), Status and Result<T>; the native core throws
// nothing. Translating a Fault into a Python exception or an exit code is left to the bindings and the
// command line.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace pyquant {

enum class Code : uint16_t {
#define PYQUANT_FAULT(code, meaning) code,
#include "pyquant/faults.def"
#undef PYQUANT_FAULT
};

struct CodeInfo {
  const char* name;
  const char* meaning;
};

inline constexpr CodeInfo kCodes[] = {
#define PYQUANT_FAULT(code, meaning) {#code, meaning},
#include "pyquant/faults.def"
#undef PYQUANT_FAULT
};

/// The stable spelling of a code, such as "E_SCALE_NOT_FINITE".
inline const char* code_name(Code code) { return kCodes[static_cast<uint16_t>(code)].name; }

/// One thing that is wrong: what was seen and expected, where, and the next step.
struct Fault {
  Code code;
  std::string message;
  std::string where;

  /// "E_CODE: where: message", one line.
  std::string text() const {
    std::string line = code_name(code);
    line += ": ";
    if (!where.empty()) line += where + ": ";
    return line + message;
  }
};

/// Ends the process: `call` was used on a Status or Result that has the other alternative. A mistake of the
/// caller, who has to ask ok() first; reading on would dereference null.
[[noreturn]] inline void wrong_alternative(const char* call, const std::string& what) {
  std::fprintf(stderr, "pyquant: %s: %s; ask ok() first\n", call, what.c_str());
  std::abort();
}

/// Success, or one Fault.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Fault fault) : fault_(std::move(fault)) {}  // NOLINT: `return Fault{...}` is the point

  bool ok() const { return !fault_; }
  /// Requires !ok(); aborts with a message otherwise.
  const Fault& fault() const {
    if (!fault_) wrong_alternative("Status::fault()", "there is no fault");
    return *fault_;
  }

 private:
  std::optional<Fault> fault_;
};

/// A value, or one Fault.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT
  Result(Fault fault) : state_(std::move(fault)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }
  /// Requires !ok(); aborts with a message otherwise.
  const Fault& fault() const {
    if (ok()) wrong_alternative("Result::fault()", "there is a value, no fault");
    return *std::get_if<1>(&state_);
  }
  /// Requires ok(); aborts with the fault's text otherwise.
  T& value() & {
    require_value();
    return *std::get_if<0>(&state_);
  }
  const T& value() const& {
    require_value();
    return *std::get_if<0>(&state_);
  }
  T&& value() && {
    require_value();
    return std::move(*std::get_if<0>(&state_));
  }

 private:
  void require_value() const {
    if (!ok()) wrong_alternative("Result::value()", fault().text());
  }

  std::variant<T, Fault> state_;
};

}  // namespace pyquant

#define PYQUANT_CONCAT_(a, b) a##b
#define PYQUANT_CONCAT(a, b) PYQUANT_CONCAT_(a, b)

/// Leaves the enclosing function with the Fault of `expression`, if it has one.
#define PYQUANT_TRY(expression)                                     \
  do {                                                              \
    if (auto pyquant_status = (expression); !pyquant_status.ok()) { \
      return pyquant_status.fault();                                \
    }                                                               \
  } while (false)

/// The same for a Result<T>; otherwise `declaration` becomes its value.
#define PYQUANT_TRY_ASSIGN(declaration, expression)              \
  auto PYQUANT_CONCAT(pyquant_result_, __LINE__) = (expression); \
  if (!PYQUANT_CONCAT(pyquant_result_, __LINE__).ok()) {         \
    return PYQUANT_CONCAT(pyquant_result_, __LINE__).fault();    \
  }                                                              \
  declaration = std::move(PYQUANT_CONCAT(pyquant_result_, __LINE__)).value()
