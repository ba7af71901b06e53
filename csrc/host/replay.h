// SPDX-License-Identifier: Apache-2.0
// A runtime that runs nothing: it holds a recording of another host's calls, compares the inputs of each call
// with the recorded ones bit for bit, and gives back the recorded outputs. So two hosts are compared without
// running a graph.
//
// A recording is a safetensors file of tensors named "NUMBER|GRAPH|in|INPUT" and "NUMBER|GRAPH|out|OUTPUT";
// numbers count the calls from 0.
#pragma once

#include <memory>
#include <vector>

#include "circle/safetensors.h"
#include "host/runtime.h"

namespace pyquant::host {

class Replay : public Runtime {
 public:
  static Result<std::unique_ptr<Replay>> open(const std::string& path);
  /// Fails with E_REPLAY for another graph, and for inputs that differ, naming the first value that does.
  Result<Outputs> run(const std::string& graph, const Inputs& inputs) override;
  /// Fails with E_REPLAY unless every recorded call was made.
  Status finish() const;

 private:
  struct Call {
    std::string graph;
    std::map<std::string, const circle::WeightsEntry*> in, out;
  };

  circle::Safetensors file_;
  std::vector<Call> calls_;
  size_t next_ = 0;
};

}  // namespace pyquant::host
