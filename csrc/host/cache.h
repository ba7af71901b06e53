// SPDX-License-Identifier: Apache-2.0
// The keys and values that graphs made of earlier tokens. The token at place p of a row stands in slot p
// modulo the slots of the layer: a layer with a window keeps the last ones, another one keeps all.
#pragma once

#include <cstdint>
#include <vector>

#include "host/manifest.h"
#include "pyquant/status.h"

namespace pyquant::host {

/// Which place slot `slot` of a row of `length` tokens holds; negative: none.
int64_t place_of_slot(int64_t length, int64_t slots, int64_t slot);

struct LayerCache {
  // (batch, kv_heads, slots, head_dim), without bytes until the first write; no slots: nothing is kept.
  Tensor keys, values;
};

struct Cache {
  std::vector<int64_t> lengths;  // tokens of each row
  std::vector<int64_t> deltas;   // from there to the position of the next token
  std::vector<LayerCache> layers;

  static Cache empty(const Manifest& manifest);
  /// Writes the first counts[row] of new keys or values (batch, kv_heads, S, head_dim) behind those of each
  /// row. An empty cache takes the grid of what is written first.
  Status write(Tensor& kept, const Tensor& made, const std::vector<int64_t>& counts) const;
};

}  // namespace pyquant::host
