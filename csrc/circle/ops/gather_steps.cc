// SPDX-License-Identifier: Apache-2.0
// GATHER and GATHER_ND: indices are checked, then rows are copied, or decoded where the table is in ggml's
// blocks.
#include <algorithm>
#include <cstring>
#include <string>

#include "circle/ops/choose.h"
#include "circle/ops/moves.h"
#include "pyquant/kernels.h"

namespace pyquant::circle {
namespace {

constexpr int64_t kPart = 16384;

/// The values of an int32 or int64 tensor.
class Indices {
 public:
  Indices(const Frame& frame, const TensorArg& operand)
      : bytes_(frame.in(operand)), wide_(operand.dtype() == DType::INT64) {}

  int64_t operator[](int64_t i) const {
    int64_t wide = 0;
    int32_t narrow = 0;
    if (!wide_) {
      std::memcpy(&narrow, bytes_ + 4 * i, 4);
      return narrow;
    }
    std::memcpy(&wide, bytes_ + 8 * i, 8);
    return wide;
  }

 private:
  const uint8_t* bytes_;
  bool wide_;
};

std::string place_text(const Shape& shape, int64_t element) {
  Shape place(shape.size());
  for (size_t d = shape.size(); d-- > 0; element /= shape[d])
    place[d] = static_cast<int32_t>(element % shape[d]);
  return shape_text(place);
}

Fault index_fault(const OpView& op, const TensorArg& index, int64_t element, int64_t value, size_t dim,
                  int64_t size) {
  return value_fault(op, op.input_text(1) + ": the index at " + place_text(index.shape, element) + " is " +
                             std::to_string(value) + ", expected 0 to " + std::to_string(size - 1) +
                             " for dimension " + std::to_string(dim) + " of " + op.input_text(0));
}

// Elements [from, from + n) of a table in blocks; they may start and end within one.
void decode(const uint8_t* table, int bits, int64_t from, int64_t n, float* out) {
  using kernels::kBlockLength;
  const int64_t bytes = kernels::block_bytes(bits);
  while (n > 0) {
    const int64_t skip = from % kBlockLength;
    const uint8_t* block = table + from / kBlockLength * bytes;
    int64_t done = n / kBlockLength * kBlockLength;
    if (skip == 0 && done > 0) {
      kernels::dequantize_blocks(block, n / kBlockLength, bits, out);
    } else {
      float values[kBlockLength];
      done = std::min(n, kBlockLength - skip);
      kernels::dequantize_blocks(block, 1, bits, values);
      std::copy_n(values + skip, done, out);
    }
    from += done, out += done, n -= done;
  }
}

/// Loops of a gather: arrays are the table without its axis, the indices, the output.
struct GatherPlan {
  size_t axis = 0;
  kernels::Nest<3> rows;
  int64_t row = 1;  // elements of the table behind the axis

  GatherPlan(const OpView& op, const TensorArg& table, const TensorArg& index,
             const std::vector<int64_t>& table_strides, const std::vector<int64_t>& index_strides,
             const std::vector<int64_t>& out_strides) {
    axis = axis_of(op.option<int64_t>("axis", 0), table.rank()).value_or(0);
    const auto batch = static_cast<size_t>(op.option<int64_t>("batch_dims", 0));
    size_t k = 0;
    for (size_t d = 0; d < axis; ++d, ++k)
      rows.add(table.shape[d], {table_strides[d], d < batch ? index_strides[d] : 0, out_strides[k]});
    for (size_t d = batch; d < index.rank(); ++d, ++k)
      rows.add(index.shape[d], {0, index_strides[d], out_strides[k]});
    for (size_t d = axis + 1; d < table.rank(); ++d) row *= table.shape[d];
  }
};

Status check_indices(const OpView& op, const TensorArg& index, const Indices& indices, size_t axis,
                     int64_t size) {
  for (int64_t i = 0; i < index.elements; ++i) {
    if (indices[i] < 0 || indices[i] >= size) return index_fault(op, index, i, indices[i], axis, size);
  }
  return {};
}

Result<Step> prepare_blocks(Builder& it) {
  const TensorArg table = it.in(0), index = it.in(1), out = it.out(0);
  const int bits = table.dtype() == DType::GGML_Q4_0 ? 4 : 8;
  const std::vector<int64_t> strides = dense_strides(table.shape);
  const GatherPlan plan(it, table, index, strides, dense_strides(index.shape), dense_strides(out.shape));
  const OpView op = it;
  return Step{[=](const Frame& frame) -> Status {
                const Indices indices(frame, index);
                PYQUANT_TRY(check_indices(op, index, indices, plan.axis, table.shape[plan.axis]));
                if (plan.row == 0) return {};
                const auto part = [&](int64_t begin, int64_t end, int) {
                  plan.rows.for_each(begin, end, [&](const kernels::Nest<3>::Offsets& at) {
                    decode(frame.in(table), bits, at[0] + indices[at[1]] * strides[plan.axis], plan.row,
                           frame.out<float>(out) + at[2]);
                  });
                };
                frame.threads().run(plan.rows.count(), std::max<int64_t>(kPart / plan.row, 1), part);
                return {};
              },
              0};
}

Status gather(const Job& job, const std::vector<int64_t>& index_strides) {
  const TensorArg &table = job.in(0), &index = job.in(1);
  const auto& strides = job.strides(0);
  const GatherPlan plan(job.op(), table, index, strides, index_strides, job.dense_out(0));
  const Indices indices(job.frame(), index);
  PYQUANT_TRY(check_indices(job.op(), index, indices, plan.axis, table.shape[plan.axis]));
  kernels::CopyNest row;
  const size_t fresh =
      job.out(0).rank() - table.rank() + plan.axis + 1;  // the output's dimensions before the row
  for (size_t d = plan.axis + 1; d < table.rank(); ++d)
    row.add(table.shape[d], {strides[d], job.dense_out(0)[fresh + d - plan.axis - 1]});
  if (row.empty()) return {};
  const bool runs = job.bits() >= 8 && row.rank() <= 1 && (row.rank() == 0 || row.stride(0, 0) == 1);
  const size_t width = static_cast<size_t>(job.bits()) / 8, bytes = static_cast<size_t>(plan.row) * width;
  const auto part = [&](int64_t begin, int64_t end, int) {
    plan.rows.for_each(begin, end, [&](const kernels::Nest<3>::Offsets& at) {
      const int64_t from = at[0] + indices[at[1]] * strides[plan.axis];
      if (runs) {
        std::memcpy(job.target(0) + static_cast<size_t>(at[2]) * width,
                    job.source(0) + static_cast<size_t>(from) * width, bytes);
      } else {
        job.move(row, 0, from, 0, at[2]);
      }
    });
  };
  // A move that is no run may use the threads itself; 4-bit elements of two rows may share a byte.
  if (runs) {
    job.frame().threads().run(plan.rows.count(), std::max<int64_t>(kPart / plan.row, 1), part);
  } else {
    part(0, plan.rows.count(), 0);
  }
  return {};
}

Status gather_nd(const Job& job) {
  const TensorArg &table = job.in(0), &index = job.in(1);
  const Indices indices(job.frame(), index);
  const auto width = static_cast<size_t>(index.shape.back());
  const auto& strides = job.strides(0);
  const int64_t tuples = width == 0 ? 0 : index.elements / index.shape.back();
  for (int64_t t = 0; t < tuples; ++t) {
    for (size_t d = 0; d < width; ++d) {
      const int64_t i = t * index.shape.back() + static_cast<int64_t>(d);
      if (indices[i] < 0 || indices[i] >= table.shape[d])
        return index_fault(job.op(), index, i, indices[i], d, table.shape[d]);
    }
  }
  kernels::CopyNest part;
  const size_t rank = index.rank() - 1;  // of the output before the part
  int64_t size = 1;
  for (size_t d = width; d < table.rank(); ++d) {
    part.add(table.shape[d], {strides[d], job.dense_out(0)[rank + d - width]});
    size *= table.shape[d];
  }
  if (size == 0) return {};
  for (int64_t t = 0; t < job.out(0).elements / size; ++t) {
    int64_t from = 0;
    for (size_t d = 0; d < width; ++d)
      from += indices[t * index.shape.back() + static_cast<int64_t>(d)] * strides[d];
    job.move(part, 0, from, 0, t * size);
  }
  return {};
}

}  // namespace

Result<Step> prepare_gather(Builder& it) {
  if (is_ggml(it.in(0).dtype())) return prepare_blocks(it);
  return move_step(
      it, {}, [strides = dense_strides(it.in(1).shape)](const Job& job) { return gather(job, strides); });
}

Result<Step> prepare_gather_nd(Builder& it) { return move_step(it, {}, gather_nd); }

}  // namespace pyquant::circle
