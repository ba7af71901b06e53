// SPDX-License-Identifier: Apache-2.0
// CAST, QUANTIZE, DEQUANTIZE: every pair of types, against conversions that are written one by one.
#include <cmath>
#include <functional>
#include <limits>

#include "check.h"
#include "pyquant/kernels.h"
#include "pyquant/qparams.h"
#include "values.h"

namespace {

using namespace run;
using pyquant::kernels::Isa;

constexpr DType kFloats[] = {DType::FLOAT32, DType::FLOAT16, DType::BFLOAT16, DType::FLOAT64};
constexpr DType kInts[] = {DType::INT4,   DType::UINT4, DType::INT8,   DType::UINT8, DType::INT16,
                           DType::UINT16, DType::INT32, DType::UINT32, DType::INT64, DType::UINT64};
constexpr DType kQuantized[] = {DType::INT4, DType::UINT4, DType::INT8, DType::UINT8, DType::INT16};

template <class T>
T as(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool is_any_float(DType dtype) { return pyquant::circle::is_float(dtype) || dtype == DType::FLOAT64; }

double float_of(uint64_t bits, DType dtype) {
  if (dtype == DType::FLOAT32) return static_cast<double>(as<float>(bits));
  if (dtype == DType::FLOAT64) return as<double>(bits);
  const int exponent_bits = dtype == DType::FLOAT16 ? 5 : 8, mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
  double v;
  if (exponent == (1 << exponent_bits) - 1) {
    v = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    v = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    v = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return bits >> 15 != 0 ? -v : v;
}

/// The bits of the nearest 16-bit float, by trying: ties to the even one.
uint64_t nearest_16(float v, DType dtype) {
  uint64_t best = 0;
  const uint64_t infinity = dtype == DType::FLOAT16 ? 0x7c00 : 0x7f80;
  const double size = std::fabs(static_cast<double>(v));
  uint64_t low = 0, high = infinity;  // low <= size < high, or both ends
  while (high - low > 1) {
    const uint64_t middle = (low + high) / 2;
    (float_of(middle, dtype) <= size ? low : high) = middle;
  }
  // Infinity is where the next finite value would be.
  const double top = high == infinity ? 2 * float_of(infinity - 1, dtype) - float_of(infinity - 2, dtype)
                                      : float_of(high, dtype);
  const double below = size - float_of(low, dtype), above = top - size;
  best = below < above ? low : above < below ? high : low % 2 == 0 ? low : high;
  if (std::isinf(v)) best = infinity;
  return best | (std::signbit(v) ? 0x8000u : 0u);
}

uint64_t bits_from(double v, float single, DType to) {
  if (to == DType::FLOAT64) {
    uint64_t bits;
    std::memcpy(&bits, &v, 8);
    return bits;
  }
  if (to == DType::FLOAT32) {
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    return bits;
  }
  return nearest_16(single, to);
}

/// What CAST gives for one element; NaN to float is compared by its being NaN.
uint64_t cast_one(uint64_t bits, DType from, DType to) {
  if (is_any_float(from)) {
    const double v = float_of(bits, from);
    if (to == DType::BOOL) return v != 0 ? 1 : 0;
    if (is_any_float(to)) return bits_from(v, static_cast<float>(v), to);
    if (std::isnan(v)) return 0;
    const auto* type = pyquant::circle::info(to);
    const double whole = std::trunc(v);
    if (to == DType::UINT64) {
      return whole <= 0 ? 0 : whole >= 0x1p64 ? UINT64_MAX : static_cast<uint64_t>(whole);
    }
    if (whole >= static_cast<double>(type->highest)) return masked(type->highest, to);
    if (whole <= static_cast<double>(type->lowest)) return masked(type->lowest, to);
    return masked(static_cast<int64_t>(whole), to);
  }
  if (from == DType::BOOL) bits = bits != 0 ? 1 : 0;
  const int64_t v = signed_of(bits, from);
  if (to == DType::BOOL) return v != 0 ? 1 : 0;
  if (!is_any_float(to)) return masked(v, to);
  if (from == DType::UINT64) return bits_from(static_cast<double>(bits), static_cast<float>(bits), to);
  return bits_from(static_cast<double>(v), static_cast<float>(v), to);
}

/// Values at and around the ends of integers, halves, and random bits.
std::vector<uint8_t> hard_bytes(std::mt19937& random, DType dtype, const Shape& shape) {
  std::vector<uint8_t> bytes = random_bytes(random, dtype, shape);
  if (dtype != DType::FLOAT32 && dtype != DType::FLOAT64) return bytes;
  const double inf = std::numeric_limits<double>::infinity();
  std::vector<double> hard = {0.0,  -0.0,    inf,      -inf,    std::nan(""), 0.5,
                              -0.5, 65504.0, 65519.99, 65520.0, 1e-7,         2.98e-8};
  for (int power : {3, 4, 7, 8, 15, 16, 31, 32, 53, 63, 64}) {
    for (double v : {std::ldexp(1.0, power), -std::ldexp(1.0, power)}) {
      for (double end : {v, v - 1, v + 1, v - 0.5, v + 0.5, std::nextafter(v, 0.0), std::nextafter(v, 2 * v)})
        hard.push_back(end);
    }
  }
  for (int64_t i = 0; i < count_of(shape); ++i) {
    if (i % 3 == 0) continue;
    const double v = hard[random() % hard.size()];
    const auto single = static_cast<float>(v);
    const size_t width = dtype == DType::FLOAT32 ? 4 : 8;
    std::memcpy(&bytes[static_cast<size_t>(i) * width], width == 4 ? static_cast<const void*>(&single) : &v,
                width);
  }
  return bytes;
}

bool is_nan(uint64_t bits, DType dtype) { return is_any_float(dtype) && std::isnan(float_of(bits, dtype)); }

}  // namespace

TEST(cast) {
  std::mt19937 random(1);
  std::vector<DType> all(std::begin(kFloats), std::end(kFloats));
  all.insert(all.end(), std::begin(kInts), std::end(kInts));
  all.push_back(DType::BOOL);
  for (DType from : all) {
    for (DType to : all) {
      for (const Shape& shape : {Shape{}, Shape{0, 3}, Shape{7, 37}, Shape{1025}}) {
        const check::Context here(pyquant::circle::name_of(from), " to ", pyquant::circle::name_of(to));
        Operand x{from, shape};
        // Grids do not matter.
        if (pyquant::circle::is_quantized(from)) x.scale = {0.25f}, x.zero_point = {3};
        x.bytes = hard_bytes(random, from, shape);
        x.constant = uniform(random, 0, 1) == 0 && !x.bytes.empty();
        const auto result = OneStep("CAST", {x}, {Operand{to, shape}},
                                    {{"in_data_type", static_cast<int64_t>(from)},
                                     {"out_data_type", static_cast<int64_t>(to)}})
                                .run(2);
        CHECK(result.ok());
        for (int64_t i = 0; i < count_of(shape); ++i) {
          const uint64_t bits = get(x.bytes, from, i), got = get(result.value()[0], to, i);
          if (is_nan(bits, from) && is_any_float(to)) {
            CHECK(is_nan(got, to));
          } else {
            CHECK_EQ(got, cast_one(bits, from, to));
          }
        }
      }
    }
  }
}

namespace {

void check_pairs(const std::function<void(std::mt19937&, Operand x, Operand y)>& body) {
  std::mt19937 random(2);
  for (const Shape& shape : {Shape{}, Shape{7}, Shape{3, 0}, Shape{5, 7, 3}, Shape{3, 700}, Shape{40001}}) {
    for (int axis = -1; axis < static_cast<int>(shape.size()); ++axis) {
      if (axis >= 0 && (count_of(shape) == 0 || shape[static_cast<size_t>(axis)] > 1000)) continue;
      body(random, Operand{DType::FLOAT32, shape, {}, {}, axis},
           Operand{DType::FLOAT32, shape, {}, {}, axis});
    }
  }
}

std::vector<uint8_t> run_one(const OneStep& step, std::mt19937& random) {
  CHECK_EQ(step.faults(), "");
  const auto result = step.run(uniform(random, 1, 2));
  CHECK_MSG(result.ok(), result.ok() ? "" : result.fault().text());
  return result.ok() ? result.value()[0] : std::vector<uint8_t>(1 << 20);
}

}  // namespace

TEST(quantize_floats) {
  check_pairs([](std::mt19937& random, Operand x, Operand y) {
    for (DType from : {DType::FLOAT32, DType::FLOAT16, DType::BFLOAT16}) {
      for (DType to : kQuantized) {
        x.dtype = from;
        y.dtype = to;
        y.scale.clear();
        y.zero_point.clear();
        Operand t = y;
        give_grid(random, t, y.axis);
        Operand in{from, x.shape};
        std::normal_distribution<float> normal(0.0f, 20.0f);
        for (int64_t i = 0; i < count_of(x.shape); ++i) {
          const float v = i % 5 == 0   ? as<float>(random())
                          : i % 5 == 1 ? uniform(random, -40, 40) * 0.125f
                                       : normal(random);
          const uint64_t bits = std::isnan(v) ? (from == DType::FLOAT32 ? 0x7fc00000u : 0x7fffu)
                                              : bits_from(static_cast<double>(v), v, from);
          for (int b = 0; b < bits_of(from); b += 8) in.bytes.push_back(static_cast<uint8_t>(bits >> b));
        }
        in.constant = uniform(random, 0, 1) == 0 && !in.bytes.empty();
        const check::Context here(pyquant::circle::name_of(from), " to ", pyquant::circle::name_of(to), " ",
                                  pyquant::circle::shape_text(x.shape), " axis ", y.axis);
        const auto bytes = run_one(OneStep("QUANTIZE", {in}, {t}), random);
        const auto* type = pyquant::circle::info(to);
        for (int64_t i = 0; i < count_of(x.shape); ++i) {
          const auto v = static_cast<float>(float_of(get(in.bytes, from, i), from));
          const Cell cell = cell_of(t, i);
          const int32_t expected = pyquant::quantize_value(
              v, {cell.scale, static_cast<int32_t>(cell.zero_point)},
              {static_cast<int32_t>(type->lowest), static_cast<int32_t>(type->highest)});
          CHECK_EQ(get(bytes, to, i), masked(expected, to));
        }
      }
    }
  });
}

TEST(quantize_integers) {
  check_pairs([](std::mt19937& random, const Operand& x, const Operand& y) {
    for (DType from : kQuantized) {
      for (DType to : kQuantized) {
        Operand in{from, x.shape}, out{to, y.shape};
        give_grid(random, in, uniform(random, 0, 1) == 0 ? x.axis : -1);
        give_grid(random, out, y.axis);
        in.bytes = random_bytes(random, from, in.shape);
        const check::Context here(pyquant::circle::name_of(from), " to ", pyquant::circle::name_of(to), " ",
                                  pyquant::circle::shape_text(x.shape));
        const OneStep step("QUANTIZE", {in}, {out});
        for (Isa isa : {Isa::scalar, Isa::portable, Isa::avx2, Isa::avx512}) {
          if (!pyquant::kernels::set_isa(isa)) continue;
          const auto bytes = run_one(step, random);
          for (int64_t i = 0; i < count_of(x.shape); ++i) {
            const int64_t q = signed_of(get(in.bytes, from, i), from);
            CHECK_EQ(get(bytes, to, i), masked(changed(q, cell_of(in, i), cell_of(out, i), to), to));
          }
        }
        pyquant::kernels::set_isa(pyquant::kernels::best_isa());
      }
    }
  });
}

TEST(dequantize) {
  check_pairs([](std::mt19937& random, const Operand& x, const Operand& y) {
    for (DType from : kQuantized) {
      for (DType to : {DType::FLOAT32, DType::FLOAT16, DType::BFLOAT16}) {
        Operand in{from, x.shape};
        give_grid(random, in, x.axis);
        in.bytes = random_bytes(random, from, in.shape);
        in.constant = uniform(random, 0, 1) == 0 && !in.bytes.empty();
        const check::Context here(pyquant::circle::name_of(from), " to ", pyquant::circle::name_of(to), " ",
                                  pyquant::circle::shape_text(x.shape));
        const auto bytes = run_one(OneStep("DEQUANTIZE", {in}, {Operand{to, y.shape}}), random);
        for (int64_t i = 0; i < count_of(x.shape); ++i) {
          const Cell cell = cell_of(in, i);
          const auto q = static_cast<int32_t>(signed_of(get(in.bytes, from, i), from));
          const float v = pyquant::dequantize_value(q, {cell.scale, static_cast<int32_t>(cell.zero_point)});
          CHECK_EQ(get(bytes, to, i), bits_from(static_cast<double>(v), v, to));
        }
      }
    }
  });
}

TEST(dequantize_float16_widens) {
  Operand x{DType::FLOAT16, {1 << 16}};
  for (int i = 0; i < 1 << 16; ++i) {
    x.bytes.push_back(static_cast<uint8_t>(i));
    x.bytes.push_back(static_cast<uint8_t>(i >> 8));
  }
  const auto result = OneStep("DEQUANTIZE", {x}, {Operand{DType::FLOAT32, {1 << 16}}}).run();
  CHECK(result.ok());
  for (int i = 0; i < 1 << 16; ++i) {
    const uint64_t bits = get(result.value()[0], DType::FLOAT32, i);
    const double expected = float_of(static_cast<uint64_t>(i), DType::FLOAT16);
    if (std::isnan(expected)) {
      CHECK(std::isnan(as<float>(bits)));
    } else {
      CHECK_BITS(as<float>(bits), static_cast<float>(expected));
    }
  }
}
