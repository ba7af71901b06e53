// SPDX-License-Identifier: Apache-2.0
// Tensors joined and taken apart: CONCATENATION, SPLIT, SPLIT_V, PACK, UNPACK.
#include <algorithm>

#include "circle/ops/moves.h"
#include "circle/ops/operand.h"

namespace pyquant::circle {
namespace {

void infer_concatenation(Inference& it) {
  Shape y = it.shape(0);
  const auto axis = axis_of(it.option<int64_t>("axis", 0), y.size());
  if (!axis) return it.fault("an axis of the inputs");
  int64_t total = y[*axis];
  for (size_t i = 1; i < it.inputs(); ++i) {
    Shape part = it.shape(i);
    if (part.size() != y.size()) return it.fault("one rank");
    total += part[*axis];
    part[*axis] = y[*axis];
    if (part != y) return it.fault("dimensions that agree outside the axis");
  }
  if (total > INT32_MAX) return it.fault("a sum of sizes that fits 32 bits");
  y[*axis] = static_cast<int32_t>(total);
  it.set(0, y, "the joined inputs");
}

void infer_split(Inference& it) {
  const Shape& x = it.shape(1);
  if (it.elements(0) != 1) return it.fault("one axis");
  if (!it.knows(0)) {
    for (size_t k = 0; k < it.outputs(); ++k) it.set_declared(k);
    return;
  }
  const auto axis = axis_of(it.ints(0)[0], x.size());
  const auto parts = static_cast<int32_t>(it.outputs());
  if (!axis || x[*axis] % parts != 0) return it.fault("an axis of the input that its outputs divide");
  Shape y = x;
  y[*axis] = x[*axis] / parts;
  for (size_t k = 0; k < it.outputs(); ++k) it.set(k, y, "an equal part");
}

// One of the sizes may be -1: what the others leave.
void infer_split_v(Inference& it) {
  const Shape& x = it.shape(0);
  const auto parts = static_cast<int64_t>(it.outputs());
  if (it.elements(1) != parts || it.elements(2) != 1) return it.fault("a size for each output, and one axis");
  if (!it.knows(1) || !it.knows(2)) {
    for (size_t k = 0; k < it.outputs(); ++k) it.set_declared(k);
    return;
  }
  const auto axis = axis_of(it.ints(2)[0], x.size());
  std::vector<int64_t> sizes = it.ints(1);
  int64_t total = 0, open = -1;
  for (size_t k = 0; k < sizes.size(); ++k) {
    if (sizes[k] == -1 && open < 0) {
      open = static_cast<int64_t>(k);
    } else if (sizes[k] < 0 || sizes[k] > INT32_MAX) {
      return it.fault("sizes of 0 or more, one of them -1");
    } else {
      total += sizes[k];
    }
  }
  if (!axis || total > x[*axis] || (open < 0 && total != x[*axis])) {
    return it.fault("outputs that make up the input");
  }
  if (open >= 0) sizes[static_cast<size_t>(open)] = x[*axis] - total;
  for (size_t k = 0; k < sizes.size(); ++k) {
    Shape y = x;
    y[*axis] = static_cast<int32_t>(sizes[k]);
    it.set(k, y, "its part");
  }
}

void infer_pack(Inference& it) {
  Shape y = it.shape(0);
  for (size_t i = 1; i < it.inputs(); ++i) {
    if (it.shape(i) != y) return it.fault("inputs of one shape");
  }
  const auto axis = axis_of(it.option<int64_t>("axis", 0), y.size() + 1);
  if (!axis) return it.fault("an axis of the output");
  y.insert(y.begin() + static_cast<std::ptrdiff_t>(*axis), static_cast<int32_t>(it.inputs()));
  it.set(0, y, "the stacked inputs");
}

void infer_unpack(Inference& it) {
  const Shape& x = it.shape(0);
  const auto axis = axis_of(it.option<int64_t>("axis", 0), x.size());
  if (!axis || x[*axis] != static_cast<int32_t>(it.outputs()))
    return it.fault("an output for each part along the axis");
  Shape y = x;
  y.erase(y.begin() + static_cast<std::ptrdiff_t>(*axis));
  for (size_t k = 0; k < it.outputs(); ++k) it.set(k, y, "the input without its axis");
}

void onert_concatenation(const TargetCheck& it) {
  it.onert_dtypes();
  if (it.data() && it.data()->dtype == DType::INT8) it.onert_one_grid();
}

void onert_split_v(const TargetCheck& it) {
  it.fault(Code::E_ONERT_WRONG, "gives zeros; write SLICE or SPLIT instead");
}

constexpr size_t kNone = SIZE_MAX;

// Input i becomes the part of output 0 that starts at element `to`. The output has one dimension more where
// `extra` names it.
void put(const Job& job, size_t i, int64_t to, size_t extra = kNone) {
  kernels::CopyNest nest;
  const auto &from_strides = job.strides(i), &to_strides = job.dense_out(0);
  for (size_t d = 0; d < from_strides.size(); ++d)
    nest.add(job.in(i).shape[d], {from_strides[d], to_strides[d + (d >= extra ? 1 : 0)]});
  job.move(nest, i, 0, 0, to);
}

// Output k is the part of input i that starts at element `from`. The input has one dimension more where
// `extra` names it.
void take(const Job& job, size_t i, int64_t from, size_t k, size_t extra = kNone) {
  kernels::CopyNest nest;
  const auto &from_strides = job.strides(i), &to_strides = job.dense_out(k);
  for (size_t d = 0; d < to_strides.size(); ++d)
    nest.add(job.out(k).shape[d], {from_strides[d + (d >= extra ? 1 : 0)], to_strides[d]});
  job.move(nest, i, from, k, 0);
}

size_t axis_option(const OpView& op, size_t rank) {
  return axis_of(op.option<int64_t>("axis", 0), rank).value_or(0);
}

Status concatenate(const Job& job) {
  const size_t axis = axis_option(job.op(), job.out(0).rank());
  int64_t to = 0;
  for (size_t i = 0; i < job.op().inputs(); ++i) {
    put(job, i, to);
    to += job.in(i).shape[axis] * job.dense_out(0)[axis];
  }
  return {};
}

Status pack(const Job& job) {
  const size_t axis = axis_option(job.op(), job.out(0).rank());
  for (size_t i = 0; i < job.op().inputs(); ++i)
    put(job, i, static_cast<int64_t>(i) * job.dense_out(0)[axis], axis);
  return {};
}

// SPLIT and SPLIT_V.
Status split(const Job& job, size_t i, int64_t axis_value) {
  const size_t axis = axis_of(axis_value, job.in(i).rank()).value_or(0);
  int64_t from = 0;
  for (size_t k = 0; k < job.op().outputs(); ++k) {
    take(job, i, from, k);
    from += job.out(k).shape[axis] * job.strides(i)[axis];
  }
  return {};
}

Status unpack(const Job& job) {
  const size_t axis = axis_option(job.op(), job.in(0).rank());
  for (size_t k = 0; k < job.op().outputs(); ++k)
    take(job, 0, static_cast<int64_t>(k) * job.strides(0)[axis], k, axis);
  return {};
}

// Of quantized tensors the move itself knows the activation; others are activated in place.
Result<Step> prepare_concatenation(Builder& it) {
  const kernels::Fused fused = fused_of(it);
  const DType dtype = it.out(0).dtype();
  if (fused == kernels::Fused::none || is_quantized(dtype)) return move_step(it, {}, concatenate);
  const OutOperand y(it, 0);
  const InOperand moved(it, it.out(0));
  PYQUANT_TRY_ASSIGN(const Step move, move_step(it, {}, concatenate));
  const auto activated = [&](auto type) {
    using T = decltype(type);
    return Step{[=](const Frame& frame) -> Status {
                  PYQUANT_TRY(move.run(frame));
                  const T* const from = moved.read<T>(frame);
                  T* const to = y.write<T>(frame);
                  if (from != to) std::copy_n(from, y.elements(), to);
                  kernels::activate(fused, to, y.elements());
                  y.finish(frame);
                  return {};
                },
                0};
  };
  if (is_float(dtype)) return activated(float{});
  return dtype == DType::INT32 ? activated(int32_t{}) : activated(int64_t{});
}

Result<Step> prepare_split(Builder& it) {
  return move_step(it, {0}, [](const Job& job) { return split(job, 1, job.ints(0)[0]); });
}

Result<Step> prepare_split_v(Builder& it) {
  return move_step(it, {1, 2}, [](const Job& job) { return split(job, 0, job.ints(2)[0]); });
}

Result<Step> prepare_pack(Builder& it) { return move_step(it, {}, pack); }
Result<Step> prepare_unpack(Builder& it) { return move_step(it, {}, unpack); }

}  // namespace

std::vector<OpRow> join_rows() {
  return {{"CONCATENATION", infer_concatenation, prepare_concatenation, onert_concatenation},
          {"SPLIT", infer_split, prepare_split},
          {"SPLIT_V", infer_split_v, prepare_split_v, onert_split_v},
          {"PACK", infer_pack, prepare_pack},
          {"UNPACK", infer_unpack, prepare_unpack}};
}

}  // namespace pyquant::circle
