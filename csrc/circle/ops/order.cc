// SPDX-License-Identifier: Apache-2.0
// Places and order of values: ARG_MAX, ARG_MIN, TOPK_V2.
#include "kernels/order.h"

#include <algorithm>

#include "circle/check/check.h"
#include "circle/ops/operand.h"
#include "circle/ops/row.h"
#include "kernels/exact.h"

namespace pyquant::circle {
namespace {

void infer_arg(Inference& it) {
  const Shape& x = it.shape(0);
  if (it.elements(1) != 1) return it.fault("one axis");
  if (!it.knows(1)) return it.set_declared(0);
  const auto axis = axis_of(it.ints(1)[0], x.size());
  if (!axis || x[*axis] == 0) return it.fault("an axis of the input, and values along it");
  Shape y = x;
  y.erase(y.begin() + static_cast<std::ptrdiff_t>(*axis));
  it.set(0, y, "the input without its axis");
}

void infer_topk(Inference& it) {
  const Shape& x = it.shape(0);
  if (x.empty() || it.elements(1) != 1) return it.fault("at least one dimension, and one number k");
  if (!it.knows(1)) {
    it.set_declared(0);
    return it.set_declared(1);
  }
  const int64_t k = it.ints(1)[0];
  if (k < 0 || k > x.back()) return it.fault("a k from 0 to " + std::to_string(x.back()));
  Shape y = x;
  y.back() = static_cast<int32_t>(k);
  it.set(0, y, "the k largest of the last dimension");
  it.set(1, y, "the k largest of the last dimension");
}

/// Calls use(I{}) with the type of a tensor of indices.
template <class Use>
auto with_index(DType dtype, Use use) {
  return dtype == DType::INT64 ? use(int64_t{}) : use(int32_t{});
}

// The order of a channel's integers is that of its values; between channels it is not.
bool mixes_scales(const Builder& b, size_t axis) {
  return b.in(0).per_channel() && static_cast<size_t>(b.in(0).tensor->quant->axis) == axis;
}

Result<Step> prepare_arg(Builder& b) {
  const Shape& shape = b.in(0).shape;
  const auto given = known_ints(b.in(1));
  if (!given) return b.unsupported("an axis that is computed");
  const size_t axis = *axis_of((*given)[0], shape.size());
  if (mixes_scales(b, axis)) return b.unsupported("a scale for each channel");
  const bool largest = std::string_view(b.op().op->name) == "ARG_MAX";
  const int64_t size = shape[axis];
  int64_t inner = 1;
  for (size_t d = axis + 1; d < shape.size(); ++d) inner *= shape[d];
  const int64_t lines = size == 0 ? 0 : b.in(0).elements / size;
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(size, 1));
  const InOperand x(b, 0);
  const TensorArg y = b.out(0);
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    return with_index(y.dtype(), [&](auto index) {
      using I = decltype(index);
      return Step{[=](const Frame& frame) -> Status {
        const T* const from = x.read<T>(frame);
        I* const to = frame.out<I>(y);
        frame.threads().run(lines, grain, [&](int64_t begin, int64_t end, int) {
          kernels::arg_extreme(largest, from, size, inner, to, begin, end);
        });
        return {};
      }};
    });
  });
}

/// A value on the grid of the output, which is nearly always that of the input.
template <class T>
T moved(T value, const InOperand& x, const OutOperand& y, bool same) {
  if constexpr (std::is_integral_v<T> && sizeof(T) <= 2) {
    if (same) return value;
    const ScaleZeroPoint in = x.qparams(), out = y.qparams();
    return static_cast<T>(kernels::round_exact({{static_cast<double>(value - in.zero_point), in.scale}},
                                               out.scale, 1.0, y.grid().qmin - out.zero_point,
                                               y.grid().qmax - out.zero_point) +
                          out.zero_point);
  } else {
    return value;
  }
}

Result<Step> prepare_topk(Builder& b) {
  if (any_per_channel(b)) return b.unsupported("a scale for each channel");
  if (!known_ints(b.in(1))) return b.unsupported("a k that is computed");
  const int64_t size = b.in(0).shape.back(), k = b.out(0).shape.back();
  const int64_t rows = size == 0 ? 0 : b.in(0).elements / size;
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  const TensorArg indices = b.out(1);
  const size_t scratch = b.scratch(size * static_cast<int64_t>(sizeof(int32_t)));
  const bool same = same_qparams(*b.in(0).tensor, *b.out(0).tensor);
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    return with_index(indices.dtype(), [&](auto index) {
      using I = decltype(index);
      return Step{[=](const Frame& frame) -> Status {
        const T* const from = x.read<T>(frame);
        T* const values = y.write<T>(frame);
        I* const at = frame.out<I>(indices);
        auto* const places = frame.scratch<int32_t>(scratch);
        for (int64_t row = 0; row < rows; ++row) {
          kernels::top_places(from + row * size, size, k, places);
          for (int64_t i = 0; i < k; ++i) {
            values[row * k + i] = moved(from[row * size + places[i]], x, y, same);
            at[row * k + i] = static_cast<I>(places[i]);
          }
        }
        y.finish(frame);
        return {};
      }};
    });
  });
}

}  // namespace

std::vector<OpRow> order_rows() {
  return {{"ARG_MAX", infer_arg, prepare_arg},
          {"ARG_MIN", infer_arg, prepare_arg},
          {"TOPK_V2", infer_topk, prepare_topk}};
}

}  // namespace pyquant::circle
