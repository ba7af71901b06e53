// SPDX-License-Identifier: Apache-2.0
// The grids of a quantized tensor, channel by channel, and loops over elements in pieces of one grid. Private
// to csrc/circle/ops.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "circle/ops/moves.h"
#include "kernels/requantize.h"
#include "pyquant/kernels.h"

namespace pyquant::circle {

constexpr int64_t kPart = 16384;
constexpr int64_t kChunk = 256;

/// The grids of a quantized tensor, and where each element's is.
struct Grids {
  std::vector<float> scale;
  std::vector<int32_t> zero_point;
  int64_t channels = 1, inner = 1;  // element i has grid i / inner % channels
  Grid grid{};
  kernels::IntKind kind{};

  /// Nothing where the tensor has not a scale for each channel.
  static std::optional<Grids> of(const TensorArg& t) {
    const DTypeInfo& type = *info(t.dtype());
    if (!t.tensor->quant || t.tensor->quant->scale.empty()) return std::nullopt;
    const QParams& q = *t.tensor->quant;
    Grids out;
    out.scale = q.scale;
    for (int64_t zero : q.zero_point) out.zero_point.push_back(static_cast<int32_t>(zero));
    out.inner = std::max<int64_t>(t.elements, 1);
    out.channels = static_cast<int64_t>(q.scale.size());
    if (t.per_channel()) {
      const auto axis = static_cast<size_t>(q.axis);
      if (axis >= t.rank() || t.shape[axis] != out.channels) return std::nullopt;
      out.inner = dense_strides(t.shape)[axis];
    }
    out.grid = {static_cast<int32_t>(type.lowest), static_cast<int32_t>(type.highest)};
    out.kind = {element_bits(t.dtype()), type.lowest < 0};
    return out;
  }

  size_t channel(int64_t element) const { return static_cast<size_t>(element / inner % channels); }
  /// Elements from `element` on that have one grid.
  int64_t run(int64_t element) const { return inner - element % inner; }
  /// Elements from `element` on whose grids are neighbours: the rest of a channel, or of a row of channels.
  int64_t stretch(int64_t element) const { return inner > 1 ? run(element) : channels - element % channels; }
  kernels::ScaleMap map(const TensorArg& t) const {
    return channels == 1 ? kernels::ScaleMap::per_tensor(t.elements)
                         : kernels::ScaleMap::per_channel(t.elements / (channels * inner), channels, inner);
  }
  /// Of n elements of a stretch: one grid, or one for each.
  kernels::ScaleMap map(int64_t n) const {
    return inner > 1 ? kernels::ScaleMap::per_tensor(n) : kernels::ScaleMap::per_channel(1, n, 1);
  }
};

/// body(at, n): at most kChunk elements, within stretch(at).
template <class Stretch, class Body>
void for_chunks(int64_t begin, int64_t end, const Stretch& stretch, const Body& body) {
  for (int64_t at = begin; at < end;) {
    const int64_t n = std::min({kChunk, end - at, stretch(at)});
    body(at, n);
    at += n;
  }
}

/// The body of a step that runs over all elements.
template <class Body>
Step elementwise(const TensorArg& x, const TensorArg& y, Body body) {
  return Step{[x, y, body](const Frame& frame) -> Status {
                frame.threads().run(y.elements, kPart, [&](int64_t begin, int64_t end, int) {
                  body(frame.in(x), frame.out(y), begin, end);
                });
                return {};
              },
              0};
}

/// A step over all elements of two quantized tensors: change(GridChange, q, n) makes n integers of one grid
/// into integers of another.
template <class Change>
Step requantize_elements(const TensorArg& x, const TensorArg& y, Change change) {
  const Grids from = *Grids::of(x), to = *Grids::of(y);
  return elementwise(x, y, [=](const uint8_t* bytes, uint8_t* out, int64_t begin, int64_t end) {
    const auto stretch = [&](int64_t at) { return std::min(from.run(at), to.run(at)); };
    for_chunks(begin, end, stretch, [&](int64_t at, int64_t n) {
      const size_t a = from.channel(at), b = to.channel(at);
      int32_t values[kChunk];
      kernels::load_ints(from.kind, bytes, at, n, values);
      change({from.scale[a], from.zero_point[a], to.scale[b], to.zero_point[b], to.grid.qmin, to.grid.qmax},
             values, n);
      kernels::store_ints(to.kind, values, out, at, n);
    });
  });
}

}  // namespace pyquant::circle
