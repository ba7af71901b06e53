// SPDX-License-Identifier: Apache-2.0
// CAST, QUANTIZE, DEQUANTIZE: some elements at a time, channel by channel where the grids are by channel.
#include <algorithm>
#include <optional>

#include "circle/ops/convert.h"
#include "circle/ops/moves.h"
#include "kernels/cast.h"
#include "kernels/requantize.h"
#include "pyquant/kernels.h"

namespace pyquant::circle {
namespace {

using kernels::Number;
using kernels::ScaleMap;

constexpr int64_t kPart = 16384;
constexpr int64_t kChunk = 256;

std::optional<Number> number_of(DType dtype) {
  switch (dtype) {
    case DType::FLOAT32:
      return Number::float32;
    case DType::FLOAT16:
      return Number::float16;
    case DType::BFLOAT16:
      return Number::bfloat16;
    case DType::FLOAT64:
      return Number::float64;
    case DType::INT4:
      return Number::int4;
    case DType::UINT4:
      return Number::uint4;
    case DType::INT8:
      return Number::int8;
    case DType::UINT8:
      return Number::uint8;
    case DType::INT16:
      return Number::int16;
    case DType::UINT16:
      return Number::uint16;
    case DType::INT32:
      return Number::int32;
    case DType::UINT32:
      return Number::uint32;
    case DType::INT64:
      return Number::int64;
    case DType::UINT64:
      return Number::uint64;
    case DType::BOOL:
      return Number::boolean;
    default:
      return std::nullopt;
  }
}

/// The grids of a quantized tensor, and where each element's is.
struct Grids {
  std::vector<float> scale;
  std::vector<int32_t> zero_point;
  int64_t channels = 1, inner = 1;  // element i has grid i / inner % channels
  Grid grid{};
  kernels::IntKind kind{};

  /// Nothing where the tensor has not a scale for each channel.
  static std::optional<Grids> of(const TensorArg& t) {
    const DTypeInfo& type = *info(t.dtype());
    if (!t.tensor->quant || t.tensor->quant->scale.empty()) return std::nullopt;
    const QParams& q = *t.tensor->quant;
    Grids out;
    out.scale = q.scale;
    for (int64_t zero : q.zero_point) out.zero_point.push_back(static_cast<int32_t>(zero));
    out.inner = std::max<int64_t>(t.elements, 1);
    out.channels = static_cast<int64_t>(q.scale.size());
    if (t.per_channel()) {
      const auto axis = static_cast<size_t>(q.axis);
      if (axis >= t.rank() || t.shape[axis] != out.channels) return std::nullopt;
      out.inner = dense_strides(t.shape)[axis];
    }
    out.grid = {static_cast<int32_t>(type.lowest), static_cast<int32_t>(type.highest)};
    out.kind = {element_bits(t.dtype()), type.lowest < 0};
    return out;
  }

  size_t channel(int64_t element) const { return static_cast<size_t>(element / inner % channels); }
  /// Elements from `element` on that have one grid.
  int64_t run(int64_t element) const { return inner - element % inner; }
  /// Elements from `element` on whose grids are neighbours: the rest of a channel, or of a row of channels.
  int64_t stretch(int64_t element) const { return inner > 1 ? run(element) : channels - element % channels; }
  ScaleMap map(const TensorArg& t) const {
    return channels == 1 ? ScaleMap::per_tensor(t.elements)
                         : ScaleMap::per_channel(t.elements / (channels * inner), channels, inner);
  }
  /// Of n elements of a stretch: one grid, or one for each.
  ScaleMap map(int64_t n) const {
    return inner > 1 ? ScaleMap::per_tensor(n) : ScaleMap::per_channel(1, n, 1);
  }
};

/// body(at, n): at most kChunk elements, within stretch(at).
template <class Stretch, class Body>
void for_chunks(int64_t begin, int64_t end, const Stretch& stretch, const Body& body) {
  for (int64_t at = begin; at < end;) {
    const int64_t n = std::min({kChunk, end - at, stretch(at)});
    body(at, n);
    at += n;
  }
}

/// The body of a step that runs over all elements.
template <class Body>
Step elementwise(const TensorArg& x, const TensorArg& y, Body body) {
  return Step{[x, y, body](const Frame& frame) -> Status {
                frame.threads().run(y.elements, kPart, [&](int64_t begin, int64_t end, int) {
                  body(frame.in(x), frame.out(y), begin, end);
                });
                return {};
              },
              0};
}

template <class Q>
void quantize_as(const Grids& to, const float* x, int64_t at, int64_t n, uint8_t* y) {
  const size_t c = to.channel(at);
  Q q[kChunk];
  int32_t wide[kChunk];
  kernels::quantize<float, Q>(x, q, to.map(n), &to.scale[c], &to.zero_point[c], to.grid, 0, n);
  std::copy_n(q, n, wide);
  kernels::store_ints(to.kind, wide, y, at, n);
}

template <class Q>
Step quantize_whole(const TensorArg& x, const TensorArg& y, const Grids& to) {
  return Step{[x, y, to, map = to.map(y)](const Frame& frame) -> Status {
                frame.threads().run(y.elements, kPart, [&](int64_t begin, int64_t end, int) {
                  kernels::quantize<float, Q>(frame.in<float>(x), frame.out<Q>(y), map, to.scale.data(),
                                              to.zero_point.data(), to.grid, begin, end);
                });
                return {};
              },
              0};
}

template <class Q>
Step dequantize_whole(const TensorArg& x, const TensorArg& y, const Grids& from) {
  return Step{[x, y, from, map = from.map(x)](const Frame& frame) -> Status {
                frame.threads().run(y.elements, kPart, [&](int64_t begin, int64_t end, int) {
                  kernels::dequantize<Q>(frame.in<Q>(x), frame.out<float>(y), map, from.scale.data(),
                                         from.zero_point.data(), begin, end);
                });
                return {};
              },
              0};
}

Step quantize_floats(const TensorArg& x, const TensorArg& y, const Grids& to) {
  if (x.dtype() == DType::FLOAT32) {
    if (y.dtype() == DType::INT8) return quantize_whole<int8_t>(x, y, to);
    if (y.dtype() == DType::UINT8) return quantize_whole<uint8_t>(x, y, to);
    if (y.dtype() == DType::INT16) return quantize_whole<int16_t>(x, y, to);
  }
  const Number type = *number_of(x.dtype());
  const int64_t width = element_bits(x.dtype()) / 8;
  return elementwise(x, y, [=](const uint8_t* from, uint8_t* out, int64_t begin, int64_t end) {
    for_chunks(
        begin, end, [&](int64_t at) { return to.stretch(at); },
        [&](int64_t at, int64_t n) {
          float values[kChunk];
          kernels::cast(type, from + at * width, Number::float32, reinterpret_cast<uint8_t*>(values), 0, n);
          if (to.kind.bits == 16) return quantize_as<int16_t>(to, values, at, n, out);
          return to.kind.is_signed ? quantize_as<int8_t>(to, values, at, n, out)
                                   : quantize_as<uint8_t>(to, values, at, n, out);
        });
  });
}

Step quantize_ints(const TensorArg& x, const TensorArg& y, const Grids& from, const Grids& to) {
  return elementwise(x, y, [=](const uint8_t* bytes, uint8_t* out, int64_t begin, int64_t end) {
    const auto stretch = [&](int64_t at) { return std::min(from.run(at), to.run(at)); };
    for_chunks(begin, end, stretch, [&](int64_t at, int64_t n) {
      const size_t a = from.channel(at), b = to.channel(at);
      int32_t values[kChunk];
      kernels::load_ints(from.kind, bytes, at, n, values);
      kernels::requantize(
          {from.scale[a], from.zero_point[a], to.scale[b], to.zero_point[b], to.grid.qmin, to.grid.qmax},
          values, values, n);
      kernels::store_ints(to.kind, values, out, at, n);
    });
  });
}

}  // namespace

Result<Step> prepare_cast(Builder& it) {
  const auto from = number_of(it.in(0).dtype()), to = number_of(it.out(0).dtype());
  if (!from || !to) return it.unsupported("casts plain numbers only");
  return elementwise(it.in(0), it.out(0),
                     [from = *from, to = *to](const uint8_t* x, uint8_t* y, int64_t begin, int64_t end) {
                       kernels::cast(from, x, to, y, begin, end);
                     });
}

Result<Step> prepare_quantize(Builder& it) {
  const TensorArg &x = it.in(0), &y = it.out(0);
  const auto to = Grids::of(y);
  if (!to || !is_quantized(y.dtype())) return it.unsupported("quantizes to a grid");
  if (is_float(x.dtype())) return quantize_floats(x, y, *to);
  const auto from = Grids::of(x);
  if (!from || !is_quantized(x.dtype())) return it.unsupported("quantizes floats, or integers with a grid");
  return quantize_ints(x, y, *from, *to);
}

Result<Step> prepare_dequantize(Builder& it) {
  const TensorArg &x = it.in(0), &y = it.out(0);
  if (is_float(x.dtype()) && is_float(y.dtype())) return prepare_cast(it);
  const auto from = Grids::of(x);
  if (!from || !is_quantized(x.dtype()) || !is_float(y.dtype()))
    return it.unsupported("dequantizes integers with a grid to floats");
  if (y.dtype() == DType::FLOAT32) {
    if (x.dtype() == DType::INT8) return dequantize_whole<int8_t>(x, y, *from);
    if (x.dtype() == DType::UINT8) return dequantize_whole<uint8_t>(x, y, *from);
    if (x.dtype() == DType::INT16) return dequantize_whole<int16_t>(x, y, *from);
  }
  const Number type = *number_of(y.dtype());
  const int64_t width = element_bits(y.dtype()) / 8;
  return elementwise(
      x, y, [from = *from, type, width](const uint8_t* bytes, uint8_t* out, int64_t begin, int64_t end) {
        for_chunks(
            begin, end, [&](int64_t at) { return from.stretch(at); },
            [&](int64_t at, int64_t n) {
              const size_t c = from.channel(at);
              int32_t integers[kChunk];
              int16_t narrow[kChunk];
              float values[kChunk];
              kernels::load_ints(from.kind, bytes, at, n, integers);
              std::copy_n(integers, n, narrow);
              kernels::dequantize<int16_t>(narrow, values, from.map(n), &from.scale[c], &from.zero_point[c],
                                           0, n);
              kernels::cast(Number::float32, reinterpret_cast<const uint8_t*>(values), type, out + at * width,
                            0, n);
            });
      });
}

}  // namespace pyquant::circle
