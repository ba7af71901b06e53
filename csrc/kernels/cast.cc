// SPDX-License-Identifier: Apache-2.0
// By way of double for floats and of int64 for integers (the bits of uint64), some elements at a time.
#include "kernels/cast.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/convert.h"
#include "kernels/move.h"

namespace pyquant::kernels {
namespace {

constexpr int64_t kChunk = 256;

int bits_of(Number type) {
  switch (type) {
    case Number::int4:
    case Number::uint4:
      return 4;
    case Number::int8:
    case Number::uint8:
    case Number::boolean:
      return 8;
    case Number::float16:
    case Number::bfloat16:
    case Number::int16:
    case Number::uint16:
      return 16;
    case Number::float32:
    case Number::int32:
    case Number::uint32:
      return 32;
    default:
      return 64;
  }
}

bool is_float(Number type) { return type <= Number::float64; }

template <class T, class Wide>
void read(const uint8_t* x, int64_t n, Wide* out) {
  for (int64_t i = 0; i < n; ++i) {
    T value;
    std::memcpy(&value, x + i * static_cast<int64_t>(sizeof(T)), sizeof value);
    if constexpr (std::is_arithmetic_v<T>) {
      out[i] = static_cast<Wide>(value);
    } else {
      out[i] = static_cast<Wide>(load(value));
    }
  }
}

void read_floats(Number type, const uint8_t* x, int64_t n, double* out) {
  if (type == Number::float32) return read<float>(x, n, out);
  if (type == Number::float16) return read<Float16>(x, n, out);
  if (type == Number::bfloat16) return read<BFloat16>(x, n, out);
  return read<double>(x, n, out);
}

void read_ints(Number type, const uint8_t* x, int64_t n, int64_t* out) {
  switch (type) {
    case Number::int4:
    case Number::uint4:
      for (int64_t i = 0; i < n; ++i) {
        const int half = get_half(x, i);
        out[i] = type == Number::int4 ? (half ^ 8) - 8 : half;
      }
      return;
    case Number::int8:
      return read<int8_t>(x, n, out);
    case Number::uint8:
      return read<uint8_t>(x, n, out);
    case Number::int16:
      return read<int16_t>(x, n, out);
    case Number::uint16:
      return read<uint16_t>(x, n, out);
    case Number::int32:
      return read<int32_t>(x, n, out);
    case Number::uint32:
      return read<uint32_t>(x, n, out);
    case Number::boolean:
      for (int64_t i = 0; i < n; ++i) out[i] = x[i] != 0 ? 1 : 0;
      return;
    default:
      return read<int64_t>(x, n, out);
  }
}

template <class T>
T to_16_bits(float v) {
  T out;
  store_any(v, out);
  return out;
}

/// The integer of a double: towards zero, saturated, 0 for NaN.
template <class T>
T truncate(double v) {
  constexpr double kLowest = static_cast<double>(std::numeric_limits<T>::min());
  // One more than the highest: a power of two, so that the 64-bit ends are exact too.
  constexpr double kBeyond = 2.0 * static_cast<double>(std::numeric_limits<T>::max() / 2 + 1);
  if (std::isnan(v)) return 0;
  if (v >= kBeyond) return std::numeric_limits<T>::max();
  return v <= kLowest ? std::numeric_limits<T>::min() : static_cast<T>(v);
}

template <class T, class Wide, class Convert>
void write(const Wide* values, int64_t n, uint8_t* y, const Convert& convert) {
  for (int64_t i = 0; i < n; ++i) {
    const T value = convert(values[i]);
    std::memcpy(y + i * static_cast<int64_t>(sizeof(T)), &value, sizeof value);
  }
}

template <class T>
void write_int(const double* values, int64_t n, uint8_t* y) {
  write<T>(values, n, y, truncate<T>);
}
template <class T>
void write_int(const int64_t* values, int64_t n, uint8_t* y) {
  write<T>(values, n, y, [](int64_t v) { return static_cast<T>(v); });
}

int half_of(double v, bool is_signed) {
  const double clamped = std::isnan(v) ? 0.0
                         : is_signed   ? std::clamp(v, -8.0, 7.0)
                                       : std::clamp(v, 0.0, 15.0);
  return static_cast<int>(clamped);
}
int half_of(int64_t v, bool) { return static_cast<int>(v & 15); }

// to_float and to_double say what a value of the source is as a float.
template <class Wide, class ToFloat, class ToDouble>
void write_all(Number type, const Wide* values, int64_t n, uint8_t* y, const ToFloat& to_float,
               const ToDouble& to_double) {
  switch (type) {
    case Number::float32:
      return write<float>(values, n, y, to_float);
    case Number::float16:
      return write<Float16>(values, n, y, [&](Wide v) { return to_16_bits<Float16>(to_float(v)); });
    case Number::bfloat16:
      return write<BFloat16>(values, n, y, [&](Wide v) { return to_16_bits<BFloat16>(to_float(v)); });
    case Number::float64:
      return write<double>(values, n, y, to_double);
    case Number::int4:
    case Number::uint4:
      for (int64_t i = 0; i < n; ++i) {
        if ((i & 1) == 0) y[i / 2] = 0;
        set_half(y, i, half_of(values[i], type == Number::int4));
      }
      return;
    case Number::int8:
      return write_int<int8_t>(values, n, y);
    case Number::uint8:
      return write_int<uint8_t>(values, n, y);
    case Number::int16:
      return write_int<int16_t>(values, n, y);
    case Number::uint16:
      return write_int<uint16_t>(values, n, y);
    case Number::int32:
      return write_int<int32_t>(values, n, y);
    case Number::uint32:
      return write_int<uint32_t>(values, n, y);
    case Number::int64:
      return write_int<int64_t>(values, n, y);
    case Number::uint64:
      return write_int<uint64_t>(values, n, y);
    case Number::boolean:
      return write<uint8_t>(values, n, y, [](Wide v) { return static_cast<uint8_t>(v != 0 ? 1 : 0); });
  }
}

}  // namespace

void cast(Number from, const uint8_t* x, Number to, uint8_t* y, int64_t begin, int64_t end) {
  const int from_bits = bits_of(from), to_bits = bits_of(to);
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = std::min(kChunk, end - at);
    const uint8_t* source = x + at * from_bits / 8;
    uint8_t* target = y + at * to_bits / 8;
    if (is_float(from)) {
      double values[kChunk];
      read_floats(from, source, n, values);
      write_all(
          to, values, n, target, [](double v) { return static_cast<float>(v); }, [](double v) { return v; });
      continue;
    }
    int64_t values[kChunk];
    read_ints(from, source, n, values);
    if (from == Number::uint64) {
      write_all(
          to, values, n, target, [](int64_t v) { return static_cast<float>(static_cast<uint64_t>(v)); },
          [](int64_t v) { return static_cast<double>(static_cast<uint64_t>(v)); });
    } else {
      write_all(
          to, values, n, target, [](int64_t v) { return static_cast<float>(v); },
          [](int64_t v) { return static_cast<double>(v); });
    }
  }
}

}  // namespace pyquant::kernels
