// SPDX-License-Identifier: Apache-2.0
// What the files of the module pyquant._circle share.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>

#include "circle/ir.h"
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

/// The memory of a bytes object, which does not change, kept for as long as `owner` is.
struct HeldBytes {
  circle::Bytes bytes;
  std::shared_ptr<const void> owner;
};
HeldBytes hold(const pybind11::bytes& data);

/// Program, Workspace, Runner.
void bind_runner(pybind11::module_& m);

}  // namespace pyquant::bindings
