// SPDX-License-Identifier: Apache-2.0
// The same elements in another shape or order: RESHAPE, SQUEEZE, EXPAND_DIMS, TRANSPOSE; and SHAPE.
#include <algorithm>
#include <cstring>

#include "circle/ops/moves.h"

namespace pyquant::circle {
namespace {

void infer_reshape(Inference& it) {
  std::vector<int64_t> wanted;
  if (it.input(1) && it.knows(1)) {
    wanted = it.ints(1);
  } else {
    const auto option = it.option("new_shape", std::vector<int32_t>());
    wanted.assign(option.begin(), option.end());
    if (it.input(1) || wanted.empty()) {
      // A shape that is computed, or none: what the file declares, if it has as many elements.
      if (element_count(it.declared(0)) != it.elements(0)) {
        return it.fault("as many elements in the output as in the input, " + std::to_string(it.elements(0)));
      }
      return it.set_declared(0);
    }
  }
  Shape y;
  int64_t product = 1, open = -1;
  for (int64_t dim : wanted) {
    if (dim < -1 || dim > INT32_MAX || (dim == -1 && open >= 0))
      return it.fault("dimensions, one of them -1");
    if (dim == -1) open = static_cast<int64_t>(y.size());
    if (dim > 0 && product > INT64_MAX / dim) return it.fault("a shape that has a size");
    if (dim != -1) product *= dim;
    y.push_back(static_cast<int32_t>(dim));
  }
  if (open >= 0) {
    if (product == 0 || it.elements(0) % product != 0 || it.elements(0) / product > INT32_MAX) {
      return it.fault("as many elements in the output as in the input, " + std::to_string(it.elements(0)));
    }
    y[static_cast<size_t>(open)] = static_cast<int32_t>(it.elements(0) / product);
  } else if (product != it.elements(0)) {
    return it.fault("as many elements in the output as in the input, " + std::to_string(it.elements(0)));
  }
  it.set(0, y, "the new shape");
}

void infer_squeeze(Inference& it) {
  const Shape& x = it.shape(0);
  const auto dims = it.option("squeeze_dims", std::vector<int32_t>());
  std::vector<bool> gone(x.size(), false);
  for (int32_t each : dims) {
    const auto axis = axis_of(each, x.size());
    if (!axis || x[*axis] != 1) return it.fault("dimensions of size 1 to squeeze");
    gone[*axis] = true;
  }
  Shape y;
  for (size_t i = 0; i < x.size(); ++i) {
    if (dims.empty() ? x[i] != 1 : !gone[i]) y.push_back(x[i]);
  }
  it.set(0, y, "the input without dimensions of size 1");
}

void infer_expand_dims(Inference& it) {
  const Shape& x = it.shape(0);
  if (it.elements(1) != 1) return it.fault("one axis");
  if (!it.knows(1)) return it.set_declared(0);
  const auto axis = axis_of(it.ints(1)[0], x.size() + 1);
  if (!axis)
    return it.fault("an axis from -" + std::to_string(x.size() + 1) + " to " + std::to_string(x.size()));
  Shape y = x;
  y.insert(y.begin() + static_cast<std::ptrdiff_t>(*axis), 1);
  it.set(0, y, "the input with a dimension of 1");
}

void infer_transpose(Inference& it) {
  const Shape& x = it.shape(0);
  const char* what = "a permutation of the input's dimensions";
  if (it.shape(1) != Shape{static_cast<int32_t>(x.size())}) return it.fault(what);
  if (!it.knows(1)) return it.set_declared(0);
  Shape y;
  std::vector<bool> seen(x.size(), false);
  for (int64_t p : it.ints(1)) {
    if (p < 0 || p >= static_cast<int64_t>(x.size()) || seen[static_cast<size_t>(p)]) return it.fault(what);
    seen[static_cast<size_t>(p)] = true;
    y.push_back(x[static_cast<size_t>(p)]);
  }
  it.set(0, y, "the permuted input");
}

void infer_shape(Inference& it) {
  it.set(0, {static_cast<int32_t>(it.shape(0).size())}, "one number for each dimension");
}

// All elements, in their order.
Status copy(const Job& job) {
  kernels::CopyNest nest;
  const auto& to = job.dense_in(0);
  for (size_t d = 0; d < to.size(); ++d) nest.add(job.in(0).shape[d], {job.strides(0)[d], to[d]});
  job.move(nest, 0, 0, 0, 0);
  return {};
}

Status transpose(const Job& job) {
  kernels::CopyNest nest;
  const auto& order = job.ints(1);
  const auto& to = job.dense_out(0);
  for (size_t d = 0; d < order.size(); ++d)
    nest.add(job.out(0).shape[d], {job.strides(0)[static_cast<size_t>(order[d])], to[d]});
  job.move(nest, 0, 0, 0, 0);
  return {};
}

Result<Step> prepare_reshape(Builder& it) {
  return move_step(it, it.in(1) ? Ints{1} : Ints{}, copy, Order::Same);
}
Result<Step> prepare_squeeze(Builder& it) { return move_step(it, {}, copy, Order::Same); }
Result<Step> prepare_expand_dims(Builder& it) { return move_step(it, {1}, copy, Order::Same); }
Result<Step> prepare_transpose(Builder& it) { return move_step(it, {1}, transpose); }

Result<Step> prepare_shape(Builder& it) {
  return Step{[x = it.in(0), y = it.out(0)](const Frame& frame) -> Status {
                for (size_t d = 0; d < x.rank(); ++d) {
                  const int64_t size = x.shape[d];
                  const size_t width = y.dtype() == DType::INT64 ? 8 : 4;
                  std::memcpy(frame.out(y) + d * width, &size, width);
                }
                return {};
              },
              0};
}

}  // namespace

std::vector<OpRow> shape_rows() {
  std::vector<OpRow> rows = {{"RESHAPE", infer_reshape, prepare_reshape},
                             {"SQUEEZE", infer_squeeze, prepare_squeeze},
                             {"EXPAND_DIMS", infer_expand_dims, prepare_expand_dims},
                             {"TRANSPOSE", infer_transpose, prepare_transpose},
                             {"SHAPE", infer_shape, prepare_shape}};
  for (size_t i = 0; i < 3; ++i) rows[i].alias = true;
  return rows;
}

}  // namespace pyquant::circle
