// SPDX-License-Identifier: Apache-2.0
// Values chosen by an index or a condition, and made from few: GATHER, GATHER_ND, SELECT, ONE_HOT, FILL,
// RANGE.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "circle/ops/choose.h"

namespace pyquant::circle {
namespace {

void infer_gather(Inference& it) {
  const Shape &x = it.shape(0), &index = it.shape(1);
  const auto axis = axis_of(it.option<int64_t>("axis", 0), x.size());
  const int64_t batch = it.option<int64_t>("batch_dims", 0);
  if (!axis || batch < 0 || batch > static_cast<int64_t>(*axis) ||
      batch > static_cast<int64_t>(index.size())) {
    return it.fault("an axis of the table, and batch_dims from 0 to it");
  }
  const auto first = static_cast<std::ptrdiff_t>(batch);
  if (!std::equal(x.begin(), x.begin() + first, index.begin()))
    return it.fault("batch dimensions that agree");
  if (is_ggml(it.input(0)->dtype) && *axis + 1 >= x.size())
    return it.fault("an axis before the last of a GGML table");
  Shape y(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(*axis));
  y.insert(y.end(), index.begin() + first, index.end());
  y.insert(y.end(), x.begin() + static_cast<std::ptrdiff_t>(*axis) + 1, x.end());
  it.set(0, y, "the rows of the indices");
}

void infer_gather_nd(Inference& it) {
  const Shape &x = it.shape(0), &index = it.shape(1);
  if (index.empty() || index.back() < 0 || index.back() > static_cast<int32_t>(x.size())) {
    return it.fault("indices [..., n] with n up to the rank of the input");
  }
  Shape y(index.begin(), index.end() - 1);
  y.insert(y.end(), x.begin() + index.back(), x.end());
  it.set(0, y, "the parts of the indices");
}

void infer_select(Inference& it) {
  const auto both = broadcast(it.shape(1), it.shape(2));
  const auto all = both ? broadcast(it.shape(0), *both) : std::nullopt;
  if (!all) return it.fault("shapes that broadcast");
  it.set(0, *all, "what the inputs broadcast to");
}

void infer_one_hot(Inference& it) {
  const Shape& x = it.shape(0);
  for (size_t i = 1; i < 4; ++i) {
    if (it.elements(i) != 1) return it.fault("one depth, one on value, one off value");
  }
  const auto axis = axis_of(it.option<int64_t>("axis", 0), x.size() + 1);
  if (!axis) return it.fault("an axis of the output");
  if (!it.knows(1)) return it.set_declared(0);
  const int64_t depth = it.ints(1)[0];
  if (depth < 0 || depth > INT32_MAX) return it.fault("a depth of 0 or more");
  Shape y = x;
  y.insert(y.begin() + static_cast<std::ptrdiff_t>(*axis), static_cast<int32_t>(depth));
  it.set(0, y, "the indices with one more dimension");
}

void infer_fill(Inference& it) {
  if (it.elements(1) != 1) return it.fault("one value");
  if (!it.knows(0)) return it.set_declared(0);
  Shape y;
  for (int64_t dim : it.ints(0)) {
    if (dim < 0 || dim > INT32_MAX) return it.fault("dimensions of 0 or more");
    y.push_back(static_cast<int32_t>(dim));
  }
  it.set(0, y, "the dimensions");
}

void infer_range(Inference& it) {
  for (size_t i = 0; i < 3; ++i) {
    if (it.elements(i) != 1) return it.fault("one start, one limit, one step");
  }
  if (it.declared(0).size() != 1) return it.fault("an output of one dimension");
  if (!it.knows(0) || !it.knows(1) || !it.knows(2)) return it.set_declared(0);
  // In double: exact for every count that a shape can have.
  const auto start = static_cast<double>(it.ints(0)[0]), limit = static_cast<double>(it.ints(1)[0]);
  const auto step = static_cast<double>(it.ints(2)[0]);
  if (step == 0) return it.fault("a step other than 0");
  const double count = std::max(std::ceil((limit - start) / step), 0.0);
  if (count > INT32_MAX) return it.fault("an output that has a size");
  it.set(0, {static_cast<int32_t>(count)}, "as many as from start to limit");
}

void onert_gather(const TargetCheck& it) {
  const Tensor* table = it.data();
  if (!table || !is_ggml(table->dtype)) {
    it.onert_dtypes();
    return it.onert_one_grid();
  }
  const Tensor* index = it.input(1);
  if (table->dtype != DType::GGML_Q4_0 || (index && index->dtype != DType::INT32)) {
    it.fault(Code::E_ONERT_DTYPE, "of a GGML table wants ggml_q4_0 and int32 indices");
  }
  int64_t rows = 1;
  for (size_t i = 0; index && i + 1 < index->shape.size(); ++i) rows *= index->shape[i];
  if (rows != 1) {
    it.fault(Code::E_ONERT_WRONG, it.input_text(1) +
                                      ": of a GGML table only the first row of indices is gathered; RESHAPE "
                                      "them to one dimension");
  }
}

}  // namespace

std::vector<OpRow> gather_rows() {
  return {{"GATHER", infer_gather, prepare_gather, onert_gather},
          {"GATHER_ND", infer_gather_nd, prepare_gather_nd},
          {"SELECT", infer_select, prepare_select},
          {"SELECT_V2", infer_select, prepare_select},
          {"ONE_HOT", infer_one_hot, prepare_one_hot},
          {"FILL", infer_fill, prepare_fill},
          {"RANGE", infer_range, prepare_range}};
}

}  // namespace pyquant::circle
