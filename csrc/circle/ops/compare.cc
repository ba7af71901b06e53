// SPDX-License-Identifier: Apache-2.0
// Comparisons and logic: bool results.
#include <map>

#include "circle/ops/operand.h"
#include "circle/ops/row.h"
#include "kernels/binary.h"

namespace pyquant::circle {
namespace {

using kernels::Broadcast;
using kernels::Compare;
using kernels::Logic;

constexpr int64_t kGrain = 4096;

const std::map<std::string_view, Compare>& comparisons() {
  static const std::map<std::string_view, Compare> all = {
      {"EQUAL", Compare::equal},     {"NOT_EQUAL", Compare::not_equal},
      {"GREATER", Compare::greater}, {"GREATER_EQUAL", Compare::greater_equal},
      {"LESS", Compare::less},       {"LESS_EQUAL", Compare::less_equal}};
  return all;
}

/// A step that calls apply(a, b, y, begin, end) for parts of the output.
template <class T, class Apply>
Step parts(const InOperand& a, const InOperand& b, const TensorArg& y, Apply apply) {
  return {[a, b, y, apply](const Frame& frame) -> Status {
    const T *const left = a.read<T>(frame), *const right = b.read<T>(frame);
    uint8_t* const to = frame.out(y);
    frame.threads().run(y.elements, kGrain,
                        [&](int64_t begin, int64_t end, int) { apply(left, right, to, begin, end); });
    return {};
  }};
}

Broadcast map_of(const Builder& b) {
  const Shape &left = b.in(0).shape, &right = b.in(1).shape;
  Broadcast map;
  Broadcast::make(left.data(), static_cast<int>(left.size()), right.data(), static_cast<int>(right.size()),
                  &map);
  return map;
}

/// Where scales differ from channel to channel: real numbers, which doubles hold.
Step by_channel(Builder& b, Compare op, const Broadcast& map) {
  const RealOperand x(b, 0), z(b, 1);
  return {[=, y = b.out(0)](const Frame& frame) -> Status {
            const double *const left = x.read(frame), *const right = z.read(frame);
            frame.threads().run(y.elements, kGrain, [&](int64_t begin, int64_t end, int) {
              kernels::compare(op, map, left, right, frame.out(y), begin, end);
            });
            return {};
          },
          0};
}

Result<Step> prepare_comparison(Builder& b) {
  const Broadcast map = map_of(b);
  const Compare op = comparisons().at(b.op().op->name);
  if (any_per_channel(b)) return by_channel(b, op, map);
  const InOperand x(b, 0), z(b, 1);
  const auto plain = [&](auto type) {
    using T = decltype(type);
    return parts<T>(x, z, b.out(0),
                    [op, map](const T* a, const T* c, uint8_t* y, int64_t begin, int64_t end) {
                      kernels::compare(op, map, a, c, y, begin, end);
                    });
  };
  if (x.dtype() == DType::FLOAT32) return plain(float{});
  if (x.dtype() == DType::INT32) return plain(int32_t{});
  if (x.dtype() == DType::INT64) return plain(int64_t{});
  if (x.dtype() == DType::BOOL) return plain(uint8_t{});
  const ScaleZeroPoint p = x.qparams(), q = z.qparams();
  return with_integer(x.dtype(), [&](auto type) {
    using Q = decltype(type);
    return parts<Q>(x, z, b.out(0),
                    [op, map, p, q](const Q* a, const Q* c, uint8_t* y, int64_t begin, int64_t end) {
                      kernels::compare_quantized(op, map, a, p, c, q, y, begin, end);
                    });
  });
}

Result<Step> prepare_logic(Builder& b) {
  const Broadcast map = map_of(b);
  const Logic op =
      std::string_view(b.op().op->name) == "LOGICAL_AND" ? Logic::logical_and : Logic::logical_or;
  return parts<uint8_t>(InOperand(b, 0), InOperand(b, 1), b.out(0),
                        [op, map](const uint8_t* a, const uint8_t* c, uint8_t* y, int64_t begin,
                                  int64_t end) { kernels::logic(op, map, a, c, y, begin, end); });
}

Result<Step> prepare_not(Builder& b) {
  return Step{[x = b.in(0), y = b.out(0)](const Frame& frame) -> Status {
    kernels::logical_not(frame.in(x), frame.out(y), x.elements);
    return {};
  }};
}

}  // namespace

std::vector<OpRow> compare_rows() {
  std::vector<OpRow> rows;
  for (const auto& [name, op] : comparisons()) rows.push_back({name, infer_broadcast, prepare_comparison});
  for (const char* name : {"LOGICAL_AND", "LOGICAL_OR"})
    rows.push_back({name, infer_broadcast, prepare_logic});
  rows.push_back({"LOGICAL_NOT", infer_same, prepare_not});
  return rows;
}

}  // namespace pyquant::circle
