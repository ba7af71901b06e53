// SPDX-License-Identifier: Apache-2.0
// The graphs of a bundle as files that csrc/run runs: each is mapped when it is first run, they share threads
// and memory. Real numbers become integers of an input's grid where they are not already; outputs are given
// as the file stores them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "host/manifest.h"
#include "host/runtime.h"
#include "run/runner.h"

namespace pyquant::host {

class CircleRuntime : public Runtime {
 public:
  /// The graphs of `manifest` in `folder`; threads: 0 for as many as the process may use.
  CircleRuntime(const Manifest& manifest, const std::string& folder, int threads);
  ~CircleRuntime() override;
  Result<Outputs> run(const std::string& graph, const Inputs& inputs) override;

 private:
  struct Loaded;
  Result<Loaded*> load(const std::string& graph);

  std::string folder_;
  std::map<std::string, std::pair<std::string, std::string>> files_;     // by graph: file, signature
  std::map<std::string, std::shared_ptr<const run::Program>> programs_;  // by file
  std::shared_ptr<run::Workspace> workspace_;
  std::map<std::string, std::unique_ptr<Loaded>> loaded_;
};

}  // namespace pyquant::host
