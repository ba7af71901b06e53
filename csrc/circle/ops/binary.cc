// SPDX-License-Identifier: Apache-2.0
// Two operands that broadcast against each other: ADD to FLOOR_MOD.
#include "kernels/binary.h"

#include <map>

#include "circle/ops/operand.h"
#include "circle/ops/row.h"

namespace pyquant::circle {
namespace {

using kernels::Binary;

constexpr int64_t kGrain = 4096;

const std::map<std::string_view, Binary>& operations() {
  static const std::map<std::string_view, Binary> all = {{"ADD", Binary::add},
                                                         {"SUB", Binary::sub},
                                                         {"MUL", Binary::mul},
                                                         {"DIV", Binary::div},
                                                         {"MAXIMUM", Binary::maximum},
                                                         {"MINIMUM", Binary::minimum},
                                                         {"POW", Binary::pow},
                                                         {"SQUARED_DIFFERENCE", Binary::squared_difference},
                                                         {"FLOOR_DIV", Binary::floor_div},
                                                         {"FLOOR_MOD", Binary::floor_mod}};
  return all;
}

/// A step that calls apply(a, b, y, begin, end) for parts of the output.
template <class T, class Apply>
Step parts(const InOperand& a, const InOperand& b, const OutOperand& y, Apply apply) {
  return {[a, b, y, apply](const Frame& frame) -> Status {
    const T *const left = a.read<T>(frame), *const right = b.read<T>(frame);
    T* const to = y.write<T>(frame);
    frame.threads().run(y.elements(), kGrain,
                        [&](int64_t begin, int64_t end, int) { apply(left, right, to, begin, end); });
    y.finish(frame);
    return {};
  }};
}

/// Where scales differ from channel to channel.
Step by_channel(Builder& b, Binary op, kernels::Fused fused, const kernels::Broadcast& map) {
  const RealOperand x(b, 0), z(b, 1);
  const ChannelResult y(b, 0, fused);
  return {[=, tanh = fused == kernels::Fused::tanh](const Frame& frame) -> Status {
            const double *const left = x.read(frame), *const right = z.read(frame);
            const kernels::ChannelOutput to = y.at(frame);
            frame.threads().run(y.elements(), kGrain, [&](int64_t begin, int64_t end, int) {
              kernels::binary_channels(op, tanh, map, left, right, to, begin, end);
            });
            y.finish(frame);
            return {};
          },
          0};
}

Result<Step> prepare(Builder& b) {
  const kernels::Fused fused = fused_of(b);
  const Binary op = operations().at(b.op().op->name);
  const Shape &left = b.in(0).shape, &right = b.in(1).shape;
  kernels::Broadcast map;
  kernels::Broadcast::make(left.data(), static_cast<int>(left.size()), right.data(),
                           static_cast<int>(right.size()), &map);
  if (any_per_channel(b)) return by_channel(b, op, fused, map);
  const InOperand x(b, 0), z(b, 1);
  const OutOperand y(b, 0);
  if (is_quantized(x.dtype())) {
    const auto plan = kernels::BinaryPlan::make(op, fused, x.qparams(), z.qparams(), y.qparams(), y.grid());
    return with_integer(x.dtype(), [&](auto type) {
      using Q = decltype(type);
      return parts<Q>(x, z, y, [plan, map](const Q* a, const Q* c, Q* to, int64_t begin, int64_t end) {
        kernels::binary_quantized(plan, map, a, c, to, begin, end);
      });
    });
  }
  const auto plain = [&](auto type) {
    using T = decltype(type);
    return parts<T>(x, z, y, [op, fused, map](const T* a, const T* c, T* to, int64_t begin, int64_t end) {
      kernels::binary(op, fused, map, a, c, to, begin, end);
    });
  };
  if (x.dtype() == DType::FLOAT32) return plain(float{});
  return x.dtype() == DType::INT32 ? plain(int32_t{}) : plain(int64_t{});
}

}  // namespace

std::vector<OpRow> binary_rows() {
  std::vector<OpRow> rows;
  for (const auto& [name, op] : operations()) rows.push_back({name, infer_broadcast, prepare});
  return rows;
}

}  // namespace pyquant::circle
