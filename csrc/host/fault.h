// SPDX-License-Identifier: Apache-2.0
// A fault without a place of its own: the message says where.
#pragma once

#include <string>
#include <utility>

#include "pyquant/status.h"

namespace pyquant::host {

inline Fault fault_of(Code code, std::string message) { return {code, std::move(message), {}}; }

}  // namespace pyquant::host
