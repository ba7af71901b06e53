// SPDX-License-Identifier: Apache-2.0
// The rounding contract one value at a time, choose_qparams, the integers of a bias.
#include <cmath>
#include <limits>

#include "../check.h"
#include "data.h"
#include "kernels/pointwise.h"

using namespace pyquant;

namespace {
constexpr Grid kInt8{-128, 127}, kUint8{0, 255}, kSymmetric8{-127, 127}, kInt16{-32767, 32767}, kInt4{-8, 7};
const float kNan = std::nanf(""), kInf = std::numeric_limits<float>::infinity();
}  // namespace

TEST(halves_round_away_from_zero) {
  const ScaleZeroPoint one{1.0f, 0};
  CHECK_EQ(quantize_value(0.5f, one, kInt8), 1);
  CHECK_EQ(quantize_value(-0.5f, one, kInt8), -1);
  CHECK_EQ(quantize_value(1.5f, one, kInt8), 2);
  CHECK_EQ(quantize_value(2.5f, one, kInt8), 3);
  CHECK_EQ(quantize_value(-2.5f, one, kInt8), -3);
  CHECK_EQ(quantize_value(0.49999997f, one, kInt8), 0);
  CHECK_EQ(quantize_value(-0.49999997f, one, kInt8), 0);
}

TEST(out_of_range_saturates) {
  const ScaleZeroPoint p{0.5f, 10};
  for (float v : {1e30f, kInf, 0x1p31f}) CHECK_EQ(quantize_value(v, p, kInt8), 127);
  for (float v : {-1e30f, -kInf, -0x1p31f}) CHECK_EQ(quantize_value(v, p, kInt8), -128);
}

TEST(nan_is_the_smallest_integer) { CHECK_EQ(quantize_value(kNan, {1.0f, 3}, kUint8), 0); }

TEST(zero_maps_to_plus_zero) {
  for (float v : {0.0f, -0.0f, -0.2f}) {
    CHECK_BITS(dequantize_value(quantize_value(v, {1.0f, 5}, kUint8), {1.0f, 5}), 0.0f);
  }
}

TEST(round_small_is_round) {
  // Every step of a 16-bit grid and its neighbours around the half.
  for (int step = 0; step <= 131070; ++step) {
    for (float v : {static_cast<float>(step), std::nextafter(step + 0.5f, 0.0f), step + 0.5f,
                    std::nextafter(step + 0.5f, kInf)}) {
      CHECK_EQ(kernels::round_small(v), static_cast<int32_t>(std::round(v)));
      CHECK_EQ(kernels::round_small(-v), static_cast<int32_t>(std::round(-v)));
    }
  }
}

TEST(asymmetric_range_contains_zero) {
  const ScaleZeroPoint above = choose_qparams(2.0f, 5.1f, kUint8, false);
  CHECK_EQ(above.zero_point, 0);
  CHECK_EQ(above.scale, static_cast<float>(static_cast<double>(5.1f) / 255));
  const ScaleZeroPoint below = choose_qparams(-5.1f, -2.0f, kInt8, false);
  CHECK_EQ(below.zero_point, 127);
  const ScaleZeroPoint both = choose_qparams(-1.0f, 2.0f, kUint8, false);
  CHECK_EQ(both.zero_point, 85);
}

TEST(symmetric_range_is_the_larger_side) {
  const ScaleZeroPoint p = choose_qparams(-3.0f, 1.0f, kSymmetric8, true);
  CHECK_EQ(p.zero_point, 0);
  CHECK_EQ(p.scale, static_cast<float>(3.0 / 127));
}

TEST(zero_range_has_scale_one) {
  for (bool symmetric : {false, true}) {
    for (float tiny : {0.0f, 1e-45f, 1e-37f}) {
      const ScaleZeroPoint p = choose_qparams(-tiny, tiny, kInt16, symmetric);
      CHECK_EQ(p.scale, 1.0f);
      CHECK_EQ(p.zero_point, 0);
    }
  }
  CHECK_EQ(choose_qparams(0.0f, 0.0f, {1, 255}, false).zero_point, 1);
}

TEST(no_range_has_scale_nan) {
  for (bool symmetric : {false, true}) {
    for (const auto& [lo, hi] :
         {std::pair{kNan, 1.0f}, {0.0f, kNan}, {-kInf, 0.0f}, {0.0f, kInf}, {kInf, -kInf}, {2.0f, 1.0f}}) {
      CHECK(std::isnan(choose_qparams(lo, hi, kInt8, symmetric).scale));
    }
  }
  const float most = std::numeric_limits<float>::max();
  CHECK(std::isnan(choose_qparams(-most, most, {0, 1}, false).scale));
  CHECK(std::isfinite(choose_qparams(-most, most, kUint8, false).scale));
}

TEST(error_is_half_a_step_inside_the_range) {
  const std::vector<float> values = data::ordinary<float>(2000, 3.0f, 1);
  for (Grid grid : {kInt4, kInt8, kUint8, kInt16}) {
    const ScaleZeroPoint p = choose_qparams(-4.0f, 6.0f, grid, false);
    for (float v : values) {
      if (!is_representable(v, p, grid)) continue;
      CHECK(std::fabs(dequantize_value(quantize_value(v, p, grid), p) - v) <= 0.5001f * p.scale);
    }
  }
}

TEST(bias_saturates_to_its_bits) {
  CHECK_EQ(quantize_bias(2.5f, 1.0f, 32), 3);
  CHECK_EQ(quantize_bias(-2.5f, 1.0f, 32), -3);
  CHECK_EQ(quantize_bias(1e30f, 1.0f, 32), 2147483647);
  CHECK_EQ(quantize_bias(-1e30f, 1.0f, 32), -2147483648LL);
  CHECK_EQ(quantize_bias(1e30f, 1.0f, 64), std::numeric_limits<int64_t>::max());
  CHECK_EQ(quantize_bias(-kInf, 1.0f, 64), std::numeric_limits<int64_t>::min());
  CHECK_EQ(quantize_bias(kNan, 1.0f, 32), -2147483648LL);
  CHECK_EQ(quantize_bias(1e9f, 1e-3f, 64),
           static_cast<int64_t>(std::round(1e9 / static_cast<double>(1e-3f))));
  CHECK_EQ(dequantize_bias(3, 0.1f), static_cast<float>(3 * static_cast<double>(0.1f)));
}

TEST(float16_conversions_are_exact) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const kernels::Float16 half{static_cast<uint16_t>(bits)};
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const float value = exponent == 31 ? (mantissa ? kNan : kInf)
                        : exponent     ? std::ldexp(1024.0f + mantissa, exponent - 25)
                                       : std::ldexp(static_cast<float>(mantissa), -24);
    const float loaded = kernels::load(half);
    if (std::isnan(value)) {
      CHECK(std::isnan(loaded));
      continue;
    }
    CHECK_BITS(loaded, sign * value);
    CHECK_BITS(data::from_float<kernels::Float16>(loaded), half);
  }
}

// Between two neighbours: below the middle goes down, above goes up, the middle goes to the even one.
template <class T>
void check_rounding_between_neighbours() {
  for (uint32_t bits = 0; kernels::load(T{static_cast<uint16_t>(bits)}) < kInf; ++bits) {
    const T low{static_cast<uint16_t>(bits)}, high{static_cast<uint16_t>(bits + 1)};
    const double a = kernels::load(low), b = kernels::load(high);
    if (std::isinf(b)) break;
    const float middle = static_cast<float>((a + b) / 2);
    for (float sign : {1.0f, -1.0f}) {
      const uint16_t mark = sign < 0 ? 0x8000 : 0;
      const uint16_t even = bits % 2 ? high.bits : low.bits;
      CHECK_EQ(data::from_float<T>(sign * middle).bits, static_cast<uint16_t>(even | mark));
      CHECK_EQ(data::from_float<T>(sign * std::nextafter(middle, 0.0f)).bits,
               static_cast<uint16_t>(low.bits | mark));
      CHECK_EQ(data::from_float<T>(sign * std::nextafter(middle, kInf)).bits,
               static_cast<uint16_t>(high.bits | mark));
    }
  }
}

TEST(float16_rounds_to_even) {
  check_rounding_between_neighbours<kernels::Float16>();
  CHECK_EQ(data::from_float<kernels::Float16>(65519.996f).bits, 0x7bff);
  CHECK_EQ(data::from_float<kernels::Float16>(65520.0f).bits, 0x7c00);
  CHECK_EQ(data::from_float<kernels::Float16>(kInf).bits, 0x7c00);
}

TEST(bfloat16_rounds_to_even) { check_rounding_between_neighbours<kernels::BFloat16>(); }
