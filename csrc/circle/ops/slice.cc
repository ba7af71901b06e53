// SPDX-License-Identifier: Apache-2.0
// Parts of a tensor, and tensors with more around or of them: SLICE, STRIDED_SLICE, PAD, PADV2, BROADCAST_TO,
// TILE.
#include "circle/ops/moves.h"
#include "circle/ops/operand.h"
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

Status slice(const Job& job) {
  kernels::CopyNest nest;
  const auto &begin = job.ints(1), &strides = job.strides(0);
  const auto& to = job.dense_out(0);
  int64_t from = 0;
  for (size_t d = 0; d < to.size(); ++d) {
    nest.add(job.out(0).shape[d], {strides[d], to[d]});
    from += begin[d] * strides[d];
  }
  job.move(nest, 0, from, 0, 0);
  return {};
}

void strided_slice(const Job& job, const StridedRange& range) {
  kernels::CopyNest nest;
  const auto& strides = job.strides(0);
  int64_t from = 0, to = job.out(0).elements;
  if (to == 0) return;
  for (size_t d = 0; d < strides.size(); ++d) {
    to /= range.count[d];
    nest.add(range.count[d], {range.count[d] > 1 ? range.step[d] * strides[d] : 0, to});
    from += range.begin[d] * strides[d];
  }
  job.move(nest, 0, from, 0, 0);
}

Result<Step> prepare_strided_slice(Builder& it) {
  const auto range_of = [](const OpView& op, const Shape& x, const auto& ints) {
    return strided_range(op, x, ints(1), ints(2), ints(3));
  };
  bool known = true;
  for (size_t i = 1; i < 4; ++i) known &= is_known(it.in(i));
  if (!known) {
    return move_step(it, {1, 2, 3}, [range_of](const Job& job) -> Status {
      const auto range = range_of(job.op(), job.in(0).shape, [&](size_t i) { return job.ints(i); });
      if (range) strided_slice(job, *range);
      return {};
    });
  }
  const auto range = range_of(it, it.in(0).shape, [&](size_t i) { return *known_ints(it.in(i)); });
  if (!range) return it.unsupported("takes no such part");
  return move_step(it, {1, 2, 3}, [range = *range](const Job& job) -> Status {
    strided_slice(job, range);
    return {};
  });
}

// PAD fills with 0, PADV2 with its value.
Status pad(const Job& job) {
  if (job.op().inputs() > 2) {
    job.fill(2, 0, 0, job.out(0).elements);
  } else {
    job.fill_zero();
  }
  kernels::CopyNest nest;
  const auto& strides = job.dense_out(0);
  int64_t to = 0;
  for (size_t d = 0; d < strides.size(); ++d) {
    nest.add(job.in(0).shape[d], {job.strides(0)[d], strides[d]});
    to += job.ints(1)[2 * d] * strides[d];
  }
  job.move(nest, 0, 0, 0, to);
  return {};
}

Status broadcast_copy(const Job& job) {
  kernels::CopyNest nest;
  const Shape& x = job.in(0).shape;
  const auto& to = job.dense_out(0);
  for (size_t d = 0; d < to.size(); ++d) {
    const size_t fresh = to.size() - x.size();  // dimensions that the input does not have
    const int64_t stride = d < fresh || x[d - fresh] == 1 ? 0 : job.strides(0)[d - fresh];
    nest.add(job.out(0).shape[d], {stride, to[d]});
  }
  job.move(nest, 0, 0, 0, 0);
  return {};
}

Status tile(const Job& job) {
  kernels::CopyNest nest;
  const Shape& x = job.in(0).shape;
  const auto& to = job.dense_out(0);
  for (size_t d = 0; d < to.size(); ++d) {
    nest.add(job.ints(1)[d], {0, x[d] * to[d]});
    nest.add(x[d], {job.strides(0)[d], to[d]});
  }
  job.move(nest, 0, 0, 0, 0);
  return {};
}

Result<Step> prepare_slice(Builder& it) { return move_step(it, {1, 2}, slice); }
Result<Step> prepare_pad(Builder& it) { return move_step(it, {1}, pad); }
Result<Step> prepare_broadcast_to(Builder& it) { return move_step(it, {1}, broadcast_copy); }
Result<Step> prepare_tile(Builder& it) { return move_step(it, {1}, tile); }

}  // namespace

std::vector<OpRow> slice_rows() {
  return {{"SLICE", infer_slice, prepare_slice},
          {"STRIDED_SLICE", infer_strided_slice, prepare_strided_slice},
          {"PAD", infer_pad, prepare_pad, onert_pad},
          {"PADV2", infer_pad, prepare_pad},
          {"BROADCAST_TO", infer_broadcast_to, prepare_broadcast_to},
          {"TILE", infer_tile, prepare_tile}};
}

}  // namespace pyquant::circle
