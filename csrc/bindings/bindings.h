// SPDX-License-Identifier: Apache-2.0
// What the files of the module pyquant._circle share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "pyquant/status.h"

namespace pyquant::bindings {

/// Raises pyquant.errors.CircleError with the fault's text.
[[noreturn]] void raise(const Fault& fault);

template <typename T>
T value_or_raise(Result<T> result) {
  if (!result.ok()) raise(result.fault());
  return std::move(result).value();
}

inline void ok_or_raise(const Status& status) {
  if (!status.ok()) raise(status.fault());
}

/// Names in a corrupt file need not be UTF-8.
pybind11::str text(const std::string& bytes);

/// Program, Workspace, Runner.
void bind_runner(pybind11::module_& m);

}  // namespace pyquant::bindings
