// SPDX-License-Identifier: Apache-2.0
// The arithmetic of STRIDED_SLICE.
#include "circle/ops/strided.h"

#include <algorithm>

namespace pyquant::circle {
namespace {

// The end of a range of `size` elements that `value` names, for a step of this sign.
int64_t clamped(int64_t value, int64_t size, bool forward) {
  if (value < 0) value = value < -size ? -1 : value + size;
  return forward ? std::clamp<int64_t>(value, 0, size) : std::clamp<int64_t>(value, -1, size - 1);
}

}  // namespace

std::optional<StridedRange> strided_range(const OpView& op, const std::vector<int32_t>& shape,
                                          const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
                                          const std::vector<int64_t>& step) {
  const auto mask = [&op](const char* name) { return op.option<int64_t>(name, 0); };
  const int64_t begin_mask = mask("begin_mask"), end_mask = mask("end_mask"),
                shrink = mask("shrink_axis_mask"), fresh = mask("new_axis_mask");
  if (mask("ellipsis_mask") != 0 || op.option("offset", false)) return std::nullopt;
  if (begin.size() != end.size() || begin.size() != step.size() || begin.size() > 32) return std::nullopt;
  StridedRange range;
  size_t dim = 0;
  for (size_t i = 0; i < begin.size(); ++i) {
    if (fresh >> i & 1) {
      range.shape.push_back(1);
      continue;
    }
    if (dim >= shape.size() || step[i] == 0 || step[i] == INT64_MIN) return std::nullopt;
    const int64_t size = shape[dim++];
    if (shrink >> i & 1) {
      const int64_t at = (begin_mask >> i & 1) ? 0 : begin[i] < 0 ? begin[i] + size : begin[i];
      if (at < 0 || at >= size) return std::nullopt;
      range.begin.push_back(at);
      range.step.push_back(1);
      range.count.push_back(1);
      continue;
    }
    const bool forward = step[i] > 0;
    const int64_t first = (begin_mask >> i & 1) ? (forward ? 0 : size - 1) : clamped(begin[i], size, forward);
    const int64_t last = (end_mask >> i & 1) ? (forward ? size : -1) : clamped(end[i], size, forward);
    const int64_t length = forward ? last - first : first - last, stride = forward ? step[i] : -step[i];
    const int64_t count = length <= 0 ? 0 : (length - 1) / stride + 1;
    range.begin.push_back(first);
    range.step.push_back(step[i]);
    range.count.push_back(count);
    range.shape.push_back(static_cast<int32_t>(count));
  }
  for (; dim < shape.size(); ++dim) {
    range.begin.push_back(0);
    range.step.push_back(1);
    range.count.push_back(shape[dim]);
    range.shape.push_back(shape[dim]);
  }
  return range;
}

}  // namespace pyquant::circle
