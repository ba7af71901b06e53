// SPDX-License-Identifier: Apache-2.0
// SELECT, ONE_HOT, FILL, RANGE.
#include "circle/ops/choose.h"

#include <cmath>
#include <cstring>

#include "circle/ops/moves.h"
#include "kernels/cast.h"
#include "kernels/select.h"

namespace pyquant::circle {
namespace {

// The stride of dimension d of `rank`, of an operand that broadcasts.
int64_t broadcast_stride(const TensorArg& t, const std::vector<int64_t>& strides, size_t d, size_t rank) {
  const size_t fresh = rank - t.rank();
  return d < fresh || t.shape[d - fresh] == 1 ? 0 : strides[d - fresh];
}

Status select(const Job& job, const std::vector<int64_t>& condition_strides) {
  kernels::Nest<4> nest;
  const TensorArg& y = job.out(0);
  for (size_t d = 0; d < y.rank(); ++d) {
    nest.add(y.shape[d], {broadcast_stride(job.in(0), condition_strides, d, y.rank()),
                          broadcast_stride(job.in(1), job.strides(1), d, y.rank()),
                          broadcast_stride(job.in(2), job.strides(2), d, y.rank()), job.dense_out(0)[d]});
  }
  kernels::select(job.frame().threads(), nest, job.bits(), job.frame().in(job.in(0)), job.source(1),
                  job.source(2), job.target(0));
  return {};
}

int64_t int_at(const Frame& frame, const TensorArg& operand, int64_t i) {
  int64_t wide = 0;
  int32_t narrow = 0;
  if (operand.dtype() == DType::INT64) {
    std::memcpy(&wide, frame.in(operand) + 8 * i, 8);
    return wide;
  }
  std::memcpy(&narrow, frame.in(operand) + 4 * i, 4);
  return narrow;
}

Status one_hot(const Job& job) {
  const TensorArg &index = job.in(0), &y = job.out(0);
  job.fill(3, 0, 0, y.elements);
  if (y.elements == 0) return {};
  const size_t axis = axis_of(job.op().option<int64_t>("axis", 0), y.rank()).value_or(0);
  const int64_t depth = y.shape[axis], inner = job.dense_out(0)[axis];
  for (int64_t i = 0; i < index.elements; ++i) {
    const int64_t hot = int_at(job.frame(), index, i);
    if (hot < 0 || hot >= depth) continue;
    job.fill(2, 0, (i / inner * depth + hot) * inner + i % inner, 1);
  }
  return {};
}

Status fill(const Job& job) {
  job.fill(1, 0, 0, job.out(0).elements);
  return {};
}

Fault count_fault(const OpView& op, const std::string& seen, int64_t expected) {
  return {Code::E_RUN_SHAPE,
          "start, limit and step give " + seen + " elements, expected " + std::to_string(expected),
          op_name(op.op())};
}

// How many elements from `start` on, `step` apart, lie before `limit`.
Status check_count(const OpView& op, double start, double limit, double step, int64_t expected) {
  if (step == 0.0 || !std::isfinite(start) || !std::isfinite(limit) || !std::isfinite(step)) {
    return value_fault(op, "start " + std::to_string(start) + ", limit " + std::to_string(limit) + ", step " +
                               std::to_string(step) + ": expected finite numbers, and a step that is not 0");
  }
  const double count = std::ceil((limit - start) / step);
  if (!(count > 0.0) && expected == 0) return {};
  if (count != static_cast<double>(expected)) {
    return count_fault(op, count > 0.0 ? std::to_string(count) : "0", expected);
  }
  return {};
}

Status float_range(const OpView& op, const Frame& frame, const TensorArg* in, const TensorArg& y) {
  const kernels::Number type = y.dtype() == DType::FLOAT32   ? kernels::Number::float32
                               : y.dtype() == DType::FLOAT16 ? kernels::Number::float16
                                                             : kernels::Number::bfloat16;
  double ends[3];
  for (size_t i = 0; i < 3; ++i)
    kernels::cast(type, frame.in(in[i]), kernels::Number::float64, reinterpret_cast<uint8_t*>(&ends[i]), 0,
                  1);
  PYQUANT_TRY(check_count(op, ends[0], ends[1], ends[2], y.elements));
  const int64_t width = element_bits(y.dtype()) / 8;
  for (int64_t i = 0; i < y.elements; ++i) {
    const float value = static_cast<float>(ends[0] + static_cast<double>(i) * ends[2]);
    kernels::cast(kernels::Number::float32, reinterpret_cast<const uint8_t*>(&value), type,
                  frame.out(y) + i * width, 0, 1);
  }
  return {};
}

Status int_range(const OpView& op, const Frame& frame, const TensorArg* in, const TensorArg& y) {
  const int64_t start = int_at(frame, in[0], 0), limit = int_at(frame, in[1], 0),
                step = int_at(frame, in[2], 0);
  if (step == 0) return value_fault(op, "the step is 0");
  // Distances fit uint64; so does a step without its sign.
  const bool up = step > 0;
  const auto low = static_cast<uint64_t>(up ? start : limit),
             high = static_cast<uint64_t>(up ? limit : start);
  const uint64_t stride = up ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
  uint64_t count = 0;
  if (up ? start < limit : start > limit) count = (high - low - 1) / stride + 1;
  if (count != static_cast<uint64_t>(y.elements)) return count_fault(op, std::to_string(count), y.elements);
  const size_t width = y.dtype() == DType::INT64 ? 8 : 4;
  for (int64_t i = 0; i < y.elements; ++i) {
    const uint64_t value =
        static_cast<uint64_t>(start) + static_cast<uint64_t>(i) * static_cast<uint64_t>(step);
    std::memcpy(frame.out(y) + static_cast<size_t>(i) * width, &value, width);
  }
  return {};
}

}  // namespace

Result<Step> prepare_select(Builder& it) {
  return move_step(
      it, {}, [strides = dense_strides(it.in(0).shape)](const Job& job) { return select(job, strides); });
}

Result<Step> prepare_one_hot(Builder& it) { return move_step(it, {1}, one_hot); }

Result<Step> prepare_fill(Builder& it) { return move_step(it, {0}, fill); }

Result<Step> prepare_range(Builder& it) {
  const OpView op = it;
  const std::vector<TensorArg> in = {it.in(0), it.in(1), it.in(2)};
  for (const TensorArg& x : in) {
    if (x.dtype() != it.out(0).dtype() || x.tensor->quant || it.out(0).tensor->quant)
      return it.unsupported("counts in plain numbers of one type");
  }
  return Step{[op, in, y = it.out(0)](const Frame& frame) {
                return is_float(y.dtype()) ? float_range(op, frame, in.data(), y)
                                           : int_range(op, frame, in.data(), y);
              },
              0};
}

}  // namespace pyquant::circle
