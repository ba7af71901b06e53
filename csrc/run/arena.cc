// SPDX-License-Identifier: Apache-2.0
#include "run/arena.h"

#include <algorithm>
#include <numeric>

namespace pyquant::run {
namespace {

constexpr size_t kAlignment = 64;

size_t align_up(size_t value) { return (value + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

size_t lay_out(std::vector<Lifetime>& tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return tensors[a].bytes > tensors[b].bytes; });
  std::vector<size_t> placed;  // by offset
  size_t end = 0;
  for (const size_t i : order) {
    Lifetime& each = tensors[i];
    size_t offset = 0;
    for (const size_t other : placed) {
      const Lifetime& there = tensors[other];
      if (there.last < each.first || there.first > each.last) continue;
      if (there.offset >= offset + each.bytes) break;
      offset = std::max(offset, align_up(there.offset + there.bytes));
    }
    each.offset = offset;
    end = std::max(end, offset + each.bytes);
    const auto at = std::upper_bound(placed.begin(), placed.end(), offset,
                                     [&](size_t value, size_t p) { return value < tensors[p].offset; });
    placed.insert(at, i);
  }
  return align_up(end);
}

}  // namespace pyquant::run
