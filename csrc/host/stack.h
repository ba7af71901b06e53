// SPDX-License-Identifier: Apache-2.0
// New tokens through the graphs of the decoder: embeddings, what the manifest puts before the layers, the
// layers in one graph or one by one, the head; keys and values go into the cache.
#pragma once

#include "host/cache.h"
#include "host/towers.h"

namespace pyquant::host {

/// The tensors that layers take, by name: masks and rotary tables of a graph's places.
using Tables = std::map<std::string, Tensor>;

class Stack {
 public:
  Stack(const Manifest& manifest, const Calls& calls) : manifest_(manifest), calls_(calls) {}

  /// Hidden states (batch, places, width) of a prompt that fills the places of one graph of a kind
  /// ("prefill", "append", "decode"), behind `cache`, which has the new keys and values then.
  Result<Tensor> through(const std::string& kind, const Prompt& prompt, const TowerRows& rows,
                         Cache& cache) const;

  /// Logits (batch, vocabulary) of hidden states (batch, 1, width).
  Result<Tensor> logits(const Tensor& hidden) const;

  /// ids int32 (batch, places) as tables take them: the manifest's placeholder where media are.
  Tensor ids(const Prompt& prompt) const;
  /// cos, signed_sin and mask of every variant.
  /// Fails with E_MANIFEST where they would be larger than any memory.
  Result<Tables> tables(const Prompt& prompt, const Cache& cache, bool past,
                        const std::map<std::string, int64_t>& bands) const;

 private:
  using Values = std::map<std::string, Tensor>;
  struct KeyValue {
    Tensor keys, values;
  };

  Result<Values> embedded(const Prompt& prompt, const TowerRows& rows) const;
  Status step(const Step& step, const Prompt& prompt, const TowerRows& rows, Values& values) const;
  Result<Tensor> whole(const Graph& graph, Values& values, const Tables& tables, bool past,
                       const Cache& cache, std::vector<KeyValue>& made) const;
  Result<Tensor> layer_by_layer(const std::string& kind, int64_t places, Values& values, const Tables& tables,
                                bool past, const Cache& cache, std::vector<KeyValue>& made) const;

  const Manifest& manifest_;
  const Calls& calls_;
};

}  // namespace pyquant::host
