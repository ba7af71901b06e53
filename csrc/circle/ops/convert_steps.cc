// SPDX-License-Identifier: Apache-2.0
// CAST, QUANTIZE, DEQUANTIZE: some elements at a time, channel by channel where the grids are by channel.
#include <algorithm>
#include <optional>

#include "circle/ops/convert.h"
#include "circle/ops/grids.h"
#include "kernels/cast.h"
#include "pyquant/kernels.h"

namespace pyquant::circle {
namespace {

using kernels::Number;

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
  return requantize_elements(x, y, [](const kernels::GridChange& change, int32_t* q, int64_t n) {
    kernels::requantize(change, q, q, n);
  });
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
