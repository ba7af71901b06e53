// SPDX-License-Identifier: Apache-2.0
#include "host/masks.h"

namespace pyquant::host {
namespace {

/// A key: its place in the row, negative for none, and its column in the prompt, -1 for a slot of the cache.
struct Key {
  int64_t place, column;
};

}  // namespace

Tensor mask_of(const Manifest& manifest, size_t variant, const Prompt& prompt, const Cache& cache, bool past,
               int64_t block) {
  const Variant& kind = manifest.variants[variant];
  const bool together = manifest.together && manifest.together->variants[variant];
  const bool bounded = together && manifest.together->bounded;
  const auto width = static_cast<int64_t>(prompt.width);
  const int64_t slots = past && !block ? kind.slots : 0;
  const int64_t keys = block ? 2 * block : slots + width;
  Tensor mask = Tensor::zeros(Type::Float32, {static_cast<int64_t>(prompt.batch), 1, width, keys});
  float* out = mask.floats();
  for (size_t row = 0; row < prompt.batch; ++row) {
    const int64_t length = cache.lengths[row];
    const uint8_t* real = prompt.real.data() + row * prompt.width;
    const int64_t* runs = prompt.runs.data() + row * prompt.width;
    for (int64_t query = 0; query < width; ++query) {
      const int64_t at = length + query;
      const int64_t first = block ? (query / block - 1) * block : 0;
      for (int64_t k = 0; k < keys; ++k) {
        Key key{length + k - slots, k - slots};
        if (block) key = {first + k, first + k};
        if (k < slots) key = {place_of_slot(length, slots, k), -1};
        const bool there =
            k < slots ? key.place >= 0 : key.column >= 0 && key.column < width && real[key.column];
        const bool within = !kind.window || key.place > at - kind.window;
        bool seen = key.place <= at && within;
        if (together && !seen && key.column >= 0 && key.column < width && runs[query] >= 0) {
          seen = runs[key.column] == runs[query] && (!bounded || within);
        }
        *out++ = seen && there ? 0.0f : manifest.fill;
      }
    }
  }
  return mask;
}

}  // namespace pyquant::host
