// SPDX-License-Identifier: Apache-2.0
// Moves of values and of the numbers of their grids.
#include "circle/ops/moves.h"

#include <algorithm>
#include <cstring>

#include "circle/ops/moves_plan.h"

namespace pyquant::circle {
namespace {

constexpr int64_t kPart = 16384;
constexpr int64_t kChunk = 256;

// change(at, n, chunk) for all elements of output k, some at a time.
template <class Change>
void change_chunks(const MovePlan& plan, const Frame& frame, size_t k, const Change& change) {
  const TensorArg& y = plan.out[k];
  uint8_t* bytes = frame.out(y);
  frame.threads().run(y.elements, kPart, [&](int64_t begin, int64_t end, int) {
    int32_t chunk[kChunk];
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t n = std::min(kChunk, end - at);
      kernels::load_ints(plan.kind, bytes, at, n, chunk);
      change(at, n, chunk);
      kernels::store_ints(plan.kind, chunk, bytes, at, n);
    }
  });
}

// One grid for all inputs, one for the output.
void change_grid(const MovePlan& plan, const Frame& frame, size_t k) {
  const TensorArg& y = plan.out[k];
  const ElementGrid from = plan.grids[0];
  if (from.keep || !y.tensor->quant || (from.scale == y.scale() && from.zero_point == y.zero_point())) return;
  const kernels::GridChange change = plan.change(from, k, 0);
  change_chunks(plan, frame, k,
                [&](int64_t, int64_t n, int32_t* chunk) { kernels::requantize(change, chunk, chunk, n); });
}

// Every element has a grid of its own.
void change_grids(const MovePlan& plan, const Frame& frame, size_t k) {
  const TensorArg& y = plan.out[k];
  if (!y.tensor->quant) return;
  int64_t inner = y.elements, channels = 1;
  if (y.per_channel()) {
    const auto axis = static_cast<size_t>(y.tensor->quant->axis);
    channels = y.shape[axis];
    inner = plan.out_strides[k][axis];
  }
  const auto* numbers = frame.scratch<int32_t>(plan.numbers[k]);
  change_chunks(plan, frame, k, [&](int64_t at, int64_t n, int32_t* chunk) {
    for (int64_t i = 0; i < n; ++i) {
      const ElementGrid& from = plan.grids[static_cast<size_t>(numbers[at + i])];
      const auto channel = static_cast<size_t>((at + i) / inner % channels);
      if (!from.keep) chunk[i] = plan.changed(from, k, channel, chunk[i]);
    }
  });
}

Status run(const MovePlan& plan, const Frame& frame) {
  IntValues read;
  if (!plan.ints.known()) PYQUANT_TRY(plan.ints.read(frame, &read));
  const IntValues& ints = plan.ints.known() ? plan.ints.values() : read;
  for (const TensorArg& y : plan.out) {  // 4 bits behind an odd number of elements are 0
    if (plan.bits == 4 && y.elements % 2 != 0) frame.out(y)[y.elements / 2] = 0;
  }
  PYQUANT_TRY(plan.function(Job(plan, frame, ints, false)));
  if (plan.grid_mode == MovePlan::Grids::Keep) return {};
  const bool one = plan.grid_mode == MovePlan::Grids::One;
  if (!one) PYQUANT_TRY(plan.function(Job(plan, frame, ints, true)));
  for (size_t k = 0; k < plan.out.size(); ++k)
    one ? change_grid(plan, frame, k) : change_grids(plan, frame, k);
  return {};
}

}  // namespace

const OpView& Job::op() const { return plan_.view; }
const TensorArg& Job::in(size_t i) const { return plan_.in[i]; }
const TensorArg& Job::out(size_t k) const { return plan_.out[k]; }
int Job::bits() const { return numbers_ ? 32 : plan_.bits; }

const std::vector<int64_t>& Job::strides(size_t i) const {
  return numbers_ ? plan_.sources[i].number_strides : plan_.sources[i].strides;
}

const std::vector<int64_t>& Job::dense_in(size_t i) const { return plan_.sources[i].strides; }
const std::vector<int64_t>& Job::dense_out(size_t k) const { return plan_.out_strides[k]; }

const uint8_t* Job::source(size_t i) const {
  if (!numbers_) return frame_.in(plan_.in[i]);
  return reinterpret_cast<const uint8_t*>(plan_.counting.data() + plan_.sources[i].first_grid);
}

uint8_t* Job::target(size_t k) const {
  return numbers_ ? frame_.scratch(plan_.numbers[k]) : frame_.out(plan_.out[k]);
}

void Job::fill_zero() const {
  // The last grid has the zero point 0.
  const auto last = static_cast<int64_t>(plan_.grids.size()) - 1;
  const bool by_element = plan_.grid_mode == MovePlan::Grids::ByElement;
  const TensorArg& grid = in(0).tensor->quant ? in(0) : out(0);
  const int64_t zero = numbers_ ? last : by_element ? 0 : grid.zero_point();
  uint8_t bytes[8];
  std::memcpy(bytes, &zero, sizeof bytes);
  kernels::fill(bits(), bytes, {target(0), 0}, out(0).elements);
}

Result<Step> move_step(Builder& builder, const Ints& ints, MoveFunction function, Order order) {
  auto plan = make_plan(builder, ints, std::move(function), order);
  if (!plan.ok()) return plan.fault();
  return Step{[plan = std::move(plan).value()](const Frame& frame) { return run(*plan, frame); }, 0};
}

}  // namespace pyquant::circle
