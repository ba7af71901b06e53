// SPDX-License-Identifier: Apache-2.0
#include "host/cache.h"

#include <algorithm>

#include "host/fault.h"

namespace pyquant::host {

int64_t place_of_slot(int64_t length, int64_t slots, int64_t slot) {
  const int64_t last = length - 1;
  const int64_t back = (last - slot) % slots;
  return last - (back < 0 ? back + slots : back);
}

Cache Cache::empty(const Manifest& manifest) {
  Cache made;
  made.lengths.assign(static_cast<size_t>(manifest.batch), 0);
  made.deltas = made.lengths;
  for (const Layer& layer : manifest.layers) {
    LayerCache kept;
    kept.keys.shape = kept.values.shape = {manifest.batch, layer.kv_heads, manifest.whole ? 0 : layer.slots,
                                           layer.head_dim};
    made.layers.push_back(std::move(kept));
  }
  return made;
}

Status Cache::write(Tensor& kept, const Tensor& made, const std::vector<int64_t>& counts) const {
  const Shape to = kept.shape;
  const Shape& from = made.shape;
  if (!is_real(made.type) || from.size() != 4 || from[0] != to[0] || from[1] != to[1] || from[3] != to[3]) {
    return fault_of(Code::E_MANIFEST, "a graph makes keys or values " + shape_text(from) +
                                          ", the manifest's cache has " + shape_text(to));
  }
  if (kept.bytes.empty()) kept = made.zeros_like(to);  // the first tokens decide the grid
  if (!made.is_like(kept)) {                           // each graph has a grid of its own
    kept = kept.as_floats();
    if (made.type != Type::Float32) return write(kept, made.as_floats(), counts);
  }
  const size_t line = static_cast<size_t>(to[3]) * type_size(made.type);
  const int64_t slots = to[2];
  for (size_t row = 0; row < counts.size(); ++row) {
    const int64_t count = std::min(counts[row], from[2]);
    for (int64_t head = 0; slots && head < to[1]; ++head) {
      const int64_t at = static_cast<int64_t>(row) * to[1] + head;
      for (int64_t i = std::max<int64_t>(0, count - slots); i < count; ++i) {
        const int64_t slot = (lengths[row] + i) % slots;
        std::memcpy(kept.bytes.data() + static_cast<size_t>(at * slots + slot) * line,
                    made.bytes.data() + static_cast<size_t>(at * from[2] + i) * line, line);
      }
    }
  }
  return {};
}

}  // namespace pyquant::host
