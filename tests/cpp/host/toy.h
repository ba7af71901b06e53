// SPDX-License-Identifier: Apache-2.0
// A manifest of two layers (one with a window of 3, one without), and a runtime whose graphs compute next to
// nothing.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "host/generate.h"

namespace toy {

using namespace pyquant;        // NOLINT
using namespace pyquant::host;  // NOLINT

constexpr int64_t kVocabulary = 16;

/// The text of a manifest of one row, or several; each edit replaces its first text by its second, which has
/// to be there.
std::string manifest_text(const std::vector<std::pair<std::string, std::string>>& edits = {}, int batch = 1);
Manifest manifest(int batch = 1);

/// hidden = the token ids, new keys = the ids, new values = their negatives; logits favour (last id + 1)
/// modulo the vocabulary. Keeps what it was given.
class Echo : public Runtime {
 public:
  explicit Echo(bool stored = false) : stored_(stored) {}
  Result<Outputs> run(const std::string& graph, const Inputs& inputs) override;
  /// Inputs of the last call of a graph.
  std::map<std::string, std::map<std::string, Tensor>> seen;
  std::vector<std::string> calls;

 private:
  Tensor given(Tensor real) const;
  bool stored_;  // whether outputs are int16 of scale 1
};

Request request(TokenRows prompts, int64_t new_tokens);

}  // namespace toy
