// SPDX-License-Identifier: Apache-2.0
// A bundle with the whole model in one graph, which runs once for each token, over all places and without a
// cache.
#pragma once

#include <memory>

#include "host/stack.h"

namespace pyquant::host {

class WholeModel {
 public:
  /// For a prompt whose media are marked and whose positions are there. Fails with E_HOST_INPUT for other
  /// items than those that the graph was made for.
  static Result<std::unique_ptr<WholeModel>> of(const Manifest& manifest, const Calls& calls,
                                                const Stack& stack, const Given& given, Prompt& prompt);
  /// Logits after the prompt, or after one more token of each row.
  Result<Tensor> logits(const std::vector<int64_t>* tokens);

 private:
  WholeModel(const Manifest& manifest, const Calls& calls, const Stack& stack, const Graph& graph)
      : manifest_(manifest), calls_(calls), stack_(stack), graph_(graph) {}
  Status take(const Given& given, std::vector<int64_t>& counts);
  void items(const Whole::Item& wanted, const std::vector<const Item*>& found);
  void index(const Prompt& prompt, const std::vector<int64_t>& counts);

  const Manifest& manifest_;
  const Calls& calls_;
  const Stack& stack_;
  const Graph& graph_;
  Prompt prompt_;                         // in all the places of the graph
  std::map<std::string, Tensor> inputs_;  // media and their index, the same for every token
};

}  // namespace pyquant::host
