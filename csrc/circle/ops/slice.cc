// SPDX-License-Identifier: Apache-2.0
// Parts of a tensor, and tensors with more around or of them: SLICE, STRIDED_SLICE, PAD, PADV2, BROADCAST_TO,
// TILE.
#include "circle/ops/row.h"
#include "circle/ops/strided.h"

namespace pyquant::circle {
namespace {

void infer_slice(Inference& it) {
  const Shape& x = it.shape(0);
  const auto rank = static_cast<int64_t>(x.size());
  if (it.elements(1) != rank || it.elements(2) != rank)
    return it.fault("a begin and a size for each dimension");
  if (!it.knows(1) || !it.knows(2)) return it.set_declared(0);
  const auto begin = it.ints(1), size = it.ints(2);
  Shape y;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool fits = begin[i] >= 0 && begin[i] <= x[i] && size[i] >= -1 && size[i] <= x[i] - begin[i];
    if (!fits) return it.fault("a part that lies within the input");
    y.push_back(static_cast<int32_t>(size[i] == -1 ? x[i] - begin[i] : size[i]));
  }
  it.set(0, y, "the part");
}

void infer_strided_slice(Inference& it) {
  if (!it.knows(1) || !it.knows(2) || !it.knows(3)) return it.set_declared(0);
  const auto range = strided_range(it, it.shape(0), it.ints(1), it.ints(2), it.ints(3));
  if (!range)
    return it.fault("begin, end and strides (not 0) for dimensions of the input, no ellipsis or offset");
  it.set(0, range->shape, "the part");
}

void infer_pad(Inference& it) {
  const Shape& x = it.shape(0);
  if (it.shape(1) != Shape{static_cast<int32_t>(x.size()), 2}) return it.fault("padding [rank, 2]");
  if (it.inputs() > 2 && it.elements(2) != 1) return it.fault("one value to pad with");
  if (!it.knows(1)) return it.set_declared(0);
  const auto padding = it.ints(1);
  Shape y;
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t before = padding[2 * i], after = padding[2 * i + 1];
    if (before < 0 || after < 0 || before > INT32_MAX || after > INT32_MAX ||
        x[i] + before + after > INT32_MAX) {
      return it.fault("padding of 0 or more");
    }
    y.push_back(static_cast<int32_t>(x[i] + before + after));
  }
  it.set(0, y, "the padded input");
}

void infer_broadcast_to(Inference& it) {
  Shape y = it.declared(0);
  if (it.knows(1)) {
    y.clear();
    for (int64_t dim : it.ints(1)) {
      if (dim < 0 || dim > INT32_MAX) return it.fault("a shape of sizes of 0 or more");
      y.push_back(static_cast<int32_t>(dim));
    }
  }
  const auto joined = broadcast(it.shape(0), y);
  if (!joined || *joined != y) return it.fault("shapes that broadcast");
  it.set(0, y, "what the input broadcasts to");
}

void infer_tile(Inference& it) {
  const Shape& x = it.shape(0);
  if (it.elements(1) != static_cast<int64_t>(x.size()))
    return it.fault("a number of copies for each dimension");
  if (!it.knows(1)) return it.set_declared(0);
  const auto copies = it.ints(1);
  Shape y;
  for (size_t i = 0; i < x.size(); ++i) {
    if (copies[i] < 0 || copies[i] > INT32_MAX || x[i] * copies[i] > INT32_MAX)
      return it.fault("copies of 0 or more");
    y.push_back(static_cast<int32_t>(x[i] * copies[i]));
  }
  it.set(0, y, "the repeated input");
}

void onert_pad(const TargetCheck& it) {
  it.onert_dtypes();
  it.onert_one_grid();
}

}  // namespace

std::vector<OpRow> slice_rows() {
  return {
      {"SLICE", infer_slice}, {"STRIDED_SLICE", infer_strided_slice}, {"PAD", infer_pad, nullptr, onert_pad},
      {"PADV2", infer_pad},   {"BROADCAST_TO", infer_broadcast_to},   {"TILE", infer_tile}};
}

}  // namespace pyquant::circle
