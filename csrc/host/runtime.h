// SPDX-License-Identifier: Apache-2.0
// What a host needs of whatever runs the graphs of a bundle.
#pragma once

#include <string>

#include "host/tensor.h"
#include "pyquant/status.h"

namespace pyquant::host {

class Runtime {
 public:
  virtual ~Runtime() = default;
  /// Runs one graph. The host has compared the inputs with the manifest before.
  virtual Result<Outputs> run(const std::string& graph, const Inputs& inputs) = 0;
};

}  // namespace pyquant::host
