// SPDX-License-Identifier: Apache-2.0
// Places and order of values: ARG_MAX, ARG_MIN, TOPK_V2.
#include "kernels/order.h"

#include <algorithm>
#include <type_traits>

#include "circle/check/check.h"
#include "circle/ops/computed.h"
#include "circle/ops/grids.h"
#include "circle/ops/operand.h"

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

/// The lines that an axis cuts a tensor into.
struct Lines {
  int64_t size, inner = 1, count = 0;

  Lines(const Shape& shape, int64_t elements, int64_t given) {
    const size_t axis = *axis_of(given, shape.size());
    size = shape[axis];
    for (size_t d = axis + 1; d < shape.size(); ++d) inner *= shape[d];
    if (size > 0) count = elements / size;
  }
};

template <class T, class Read>
Step arg_step(Builder& b, const ComputedInts& ints, Read read) {
  const bool largest = std::string_view(b.op().op->name) == "ARG_MAX";
  const TensorArg x = b.in(0), y = b.out(0);
  const auto lines_of = [shape = x.shape, n = x.elements](const IntValues& values) {
    return Lines(shape, n, values[1][0]);
  };
  return with_index(y.dtype(), [&](auto index) {
    using I = decltype(index);
    return planned_step(ints, lines_of, [=](const Frame& frame, const Lines& lines) {
      const T* const from = read(frame);
      I* const to = frame.out<I>(y);
      const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(lines.size, 1));
      frame.threads().run(lines.count, grain, [&](int64_t begin, int64_t end, int) {
        kernels::arg_extreme(largest, from, lines.size, lines.inner, to, begin, end);
      });
    });
  });
}

Result<Step> prepare_arg(Builder& b) {
  const ComputedInts ints(b, {1});
  // The order of a channel's integers is that of its values; between channels it is not.
  if (b.in(0).per_channel()) {
    const auto channels = static_cast<size_t>(b.in(0).tensor->quant->axis);
    if (!ints.known() || axis_of(ints.values()[1][0], b.in(0).rank()) == channels) {
      return arg_step<double>(b, ints, [x = RealOperand(b, 0)](const Frame& frame) { return x.read(frame); });
    }
  }
  const InOperand x(b, 0);
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    return arg_step<T>(b, ints, [x](const Frame& frame) { return x.read<T>(frame); });
  });
}

/// From the grids of an input to those of an output; nothing where values stay what they are.
struct Regrid {
  std::optional<Grids> from, to;

  Regrid(const TensorArg& x, const TensorArg& y) {
    if (!is_quantized(x.dtype())) return;
    const bool one = !x.per_channel() && !y.per_channel() && same_qparams(*x.tensor, *y.tensor);
    from = Grids::of(x);
    if (!one) to = Grids::of(y);
  }
  template <class T>
  T operator()(T value, int64_t at, int64_t result) const {
    if constexpr (std::is_integral_v<T> && sizeof(T) <= 2) {
      if (!from || !to) return value;
      const size_t a = from->channel(at), c = to->channel(result);
      return static_cast<T>(kernels::requantize_value({from->scale[a], from->zero_point[a], to->scale[c],
                                                       to->zero_point[c], to->grid.qmin, to->grid.qmax},
                                                      value));
    } else {
      return value;
    }
  }
};

/// `order(frame)`: what the rows are ordered by, where that is not the values themselves.
template <class K, class Order>
Result<Step> topk_step(Builder& b, Order order) {
  const ComputedInts ints(b, {1});
  const int64_t size = b.in(0).shape.back(), k = b.out(0).shape.back();
  const int64_t rows = size == 0 ? 0 : b.in(0).elements / size;
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  const TensorArg indices = b.out(1);
  const size_t scratch = b.scratch(size * static_cast<int64_t>(sizeof(int32_t)));
  const Regrid regrid(b.in(0), b.out(0));
  return with_number(x.dtype(), [&](auto type) {
    using T = decltype(type);
    using Key = std::conditional_t<std::is_void_v<K>, T, double>;
    return with_index(indices.dtype(), [&](auto index) {
      using I = decltype(index);
      return Step{[=](const Frame& frame) -> Status {
        IntValues read;
        if (!ints.known()) PYQUANT_TRY(ints.read(frame, &read));
        const T* const from = x.read<T>(frame);
        const Key* keys;
        if constexpr (std::is_void_v<K>) {
          keys = from;
        } else {
          keys = order(frame);
        }
        T* const values = y.write<T>(frame);
        I* const at = frame.out<I>(indices);
        auto* const places = frame.scratch<int32_t>(scratch);
        for (int64_t row = 0; row < rows; ++row) {
          kernels::top_places(keys + row * size, size, k, places);
          for (int64_t i = 0; i < k; ++i) {
            const int64_t place = row * size + places[i], result = row * k + i;
            values[result] = regrid(from[place], place, result);
            at[result] = static_cast<I>(places[i]);
          }
        }
        y.finish(frame);
        return {};
      }};
    });
  });
}

Result<Step> prepare_topk(Builder& b) {
  const TensorArg& x = b.in(0);
  if (x.per_channel() && static_cast<size_t>(x.tensor->quant->axis) + 1 == x.rank()) {
    return topk_step<double>(b, [real = RealOperand(b, 0)](const Frame& frame) { return real.read(frame); });
  }
  return topk_step<void>(b, nullptr);
}

}  // namespace

std::vector<OpRow> order_rows() {
  return {{"ARG_MAX", infer_arg, prepare_arg},
          {"ARG_MIN", infer_arg, prepare_arg},
          {"TOPK_V2", infer_topk, prepare_topk}};
}

}  // namespace pyquant::circle
