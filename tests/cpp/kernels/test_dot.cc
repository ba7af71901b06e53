// SPDX-License-Identifier: Apache-2.0
// Integer products against 128-bit rationals, element by element: every type of x and w, both ways to lie in
// memory, odd sizes, extreme values, ties; every instruction set; units split anywhere.
#include "kernels/dot.h"

#include <cstdlib>
#include <random>

#include "../check.h"
#include "data.h"

using namespace pyquant::kernels;

namespace {

__extension__ using Wide = __int128;

struct Case {
  Elements x, w;
  int64_t rows, columns, depth;
  bool x_transposed, w_transposed, per_channel, has_bias, saturated, zeros;
};

struct Range {
  int64_t least, most;
};
Range range_of(Elements e) {
  switch (e) {
    case Elements::int4:
      return {-8, 7};
    case Elements::uint4:
      return {0, 15};
    case Elements::int8:
      return {-128, 127};
    case Elements::uint8:
      return {0, 255};
    default:
      return {-32768, 32767};
  }
}

/// Elements as they lie in a file, with nothing behind them (what AddressSanitizer sees).
struct Stored {
  std::vector<int64_t> value;
  std::vector<uint8_t> bytes;

  Stored(Elements e, int64_t n, std::mt19937_64& random, bool saturated) : value(n) {
    const Range r = range_of(e);
    for (int64_t& v : value) {
      v = saturated ? (random() % 2 ? r.least : r.most)
                    : r.least + static_cast<int64_t>(random() % (r.most - r.least + 1));
    }
    const auto same = saturated ? random() % 3 : 2;
    if (same < 2) std::fill(value.begin(), value.end(), same ? r.least : r.most);
    bytes.resize(is_four_bit(e) ? (n + 1) / 2 : e == Elements::int16 ? 2 * n : n);
    for (int64_t i = 0; i < n; ++i) {
      if (is_four_bit(e)) {
        bytes[i / 2] |= static_cast<uint8_t>((value[i] & 15) << (i % 2 * 4));
      } else if (e == Elements::int16) {
        const auto v = static_cast<int16_t>(value[i]);
        std::memcpy(&bytes[2 * i], &v, 2);
      } else {
        bytes[i] = static_cast<uint8_t>(value[i]);
      }
    }
  }
};

/// round_half_away(number / divisor).
int64_t rounded(Wide number, Wide divisor) {
  const Wide size = ((number < 0 ? -number : number) * 2 + divisor) / (2 * divisor);
  return static_cast<int64_t>(number < 0 ? -size : size);
}

/// A float32 that is `integer` / 2^12 exactly, so that the reference has integers to compute with.
float scale_of(int64_t integer) { return static_cast<float>(integer) * 0x1p-12f; }

struct Buffer {
  std::vector<uint8_t> bytes;
  explicit Buffer(int64_t n) : bytes(n + 64) {}
  void* at() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) & ~uintptr_t{63});
  }
};

void run(const Linear& problem, int64_t split) {
  LinearPlan plan;
  CHECK(plan_linear(problem, &plan));
  Buffer prepared(plan.prepared_bytes);
  const int64_t rows = std::min(split, problem.rows), units = std::min(split, plan.units);
  prepare_rows(problem, plan, rows, problem.rows, prepared.at());
  prepare_rows(problem, plan, 0, rows, prepared.at());
  run_units(problem, plan, prepared.at(), units, plan.units);
  run_units(problem, plan, prepared.at(), 0, units);
}

template <class T>
void check_case(const Case& c, std::mt19937_64& random) {
  const int64_t w_step =
      !c.w_transposed && is_four_bit(c.w) && random() % 2 ? c.depth + c.depth % 2 : c.depth;
  Stored x(c.x, c.rows * c.depth, random, c.saturated), w(c.w, c.columns * w_step, random, c.saturated);
  const Range x_range = range_of(c.x), w_range = range_of(c.w);
  const auto zero_in = [&](Range r) {
    if (!c.zeros) return int64_t{0};
    // -1: x - x_zero of int16 is just beyond 16 bits.
    if (r.least < 0 && random() % 4 == 0) return int64_t{-1};
    return r.least + static_cast<int64_t>(random() % (r.most - r.least + 1));
  };
  const int64_t channels = c.per_channel ? c.columns : 1;
  std::vector<int64_t> w_zero(channels), w_scale(channels), bias_scale(channels);
  std::vector<float> w_float(channels), bias_float(channels);
  for (int64_t n = 0; n < channels; ++n) {
    w_zero[n] = zero_in(w_range);
    w_scale[n] = random() % 8 == 0 ? 4096 : 1 + random() % 8000;
    bias_scale[n] = 1 + random() % 8000;
    w_float[n] = scale_of(w_scale[n]);
    bias_float[n] = scale_of(bias_scale[n]);
  }
  std::vector<int64_t> bias64(c.columns);
  std::vector<int32_t> bias32(c.columns);
  for (int64_t n = 0; n < c.columns; ++n) {
    bias32[n] = static_cast<int32_t>(random() % 200001) - 100000;
    bias64[n] = bias32[n] * (c.saturated ? (int64_t{1} << 42) + 1 : 1);
  }
  const bool wide_bias = c.x == Elements::int16 && random() % 2;
  const int64_t x_zero = zero_in(x_range), x_scale = random() % 4 == 0 ? 4096 : 1 + random() % 8000;
  const Range y_range = range_of(c.x);

  Linear problem{};
  problem.rows = c.rows;
  problem.columns = c.columns;
  problem.depth = c.depth;
  problem.x = {c.x, x.bytes.data(), c.x_transposed ? 1 : c.depth, c.x_transposed ? c.rows : 1};
  problem.x_scale = scale_of(x_scale);
  problem.x_zero = x_zero;
  problem.w = {c.w, w.bytes.data(), c.w_transposed ? 1 : w_step, c.w_transposed ? c.columns : 1};
  problem.w_scales = {w_float.data(), w_zero.data(), c.per_channel ? 1 : 0};
  if (c.has_bias) problem.bias = wide_bias ? static_cast<const void*>(bias64.data()) : bias32.data();
  problem.bias_type = wide_bias ? Elements::int64 : Elements::int32;
  problem.bias_scales = {bias_float.data(), nullptr, c.per_channel ? 1 : 0};
  std::vector<Wide> numbers;
  for (int64_t m = 0; m < c.rows; ++m) {
    for (int64_t n = 0; n < c.columns; ++n) {
      const int64_t channel = c.per_channel ? n : 0;
      Wide sum = 0;
      for (int64_t k = 0; k < c.depth; ++k) {
        const int64_t a = x.value[m * problem.x.row_step + k * problem.x.column_step];
        const int64_t b = w.value[n * problem.w.row_step + k * problem.w.column_step];
        sum += (a - x_zero) * (b - w_zero[channel]);
      }
      Wide number = sum * x_scale * w_scale[channel];
      if (c.has_bias) number += Wide{wide_bias ? bias64[n] : bias32[n]} * bias_scale[channel] * 4096;
      numbers.push_back(number);
    }
  }

  // A scale with which the largest result is at the ends of y's type, or some times beyond.
  Wide most = 1;
  for (Wide number : numbers) most = std::max(most, number < 0 ? -number : number);
  Wide y_scale = std::max<Wide>(1, most / 4096 / y_range.most / (1 + random() % 3));
  int shift = 0;
  for (; y_scale >> shift >= 1 << 24;) ++shift;
  y_scale = (y_scale >> shift) << shift;
  const int64_t y_zero = zero_in(y_range);
  data::Guarded<T> y(c.rows * c.columns, 0);
  problem.y = {c.x,
               y.data(),
               c.columns,
               std::ldexp(scale_of(static_cast<int64_t>(y_scale >> shift)), shift),
               y_zero,
               y_range.least,
               y_range.most,
               0,
               0};
  std::vector<int64_t> expected;
  for (Wide number : numbers) {
    const int64_t q = rounded(number, y_scale * 4096);
    expected.push_back(std::min(y_range.most, std::max(y_range.least, q + y_zero)));
  }
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    const check::Context here(isa_name(isa), " x ", int(c.x), " w ", int(c.w), " ", c.rows, "x", c.columns,
                              "x", c.depth, c.x_transposed ? " x^T" : "", c.w_transposed ? " w^T" : "",
                              c.saturated ? " saturated" : "", c.zeros ? " zeros" : "");
    std::fill(y.data(), y.data() + c.rows * c.columns, T{0});
    run(problem, static_cast<int64_t>(random() % 5));
    CHECK(y.intact());
    for (int64_t i = 0; i < c.rows * c.columns; ++i) CHECK_EQ(static_cast<int64_t>(y[i]), expected[i]);
  }
}

void check_any(const Case& c, std::mt19937_64& random) {
  if (c.x == Elements::int8) return check_case<int8_t>(c, random);
  if (c.x == Elements::uint8) return check_case<uint8_t>(c, random);
  check_case<int16_t>(c, random);
}

constexpr Elements kX[] = {Elements::int8, Elements::uint8, Elements::int16};
constexpr Elements kW[] = {Elements::int4, Elements::uint4, Elements::int8, Elements::uint8, Elements::int16};

}  // namespace

TEST(dot_integers_equal_rationals) {
  std::mt19937_64 random(3);
  const int64_t depths[] = {0, 1, 2, 3, 15, 16, 31, 33, 63, 64, 65, 127, 130, 200};
  for (Elements x : kX) {
    for (Elements w : kW) {
      for (int64_t depth : depths) {
        for (int round = 0; round < 4; ++round) {
          const Case c{x,
                       w,
                       static_cast<int64_t>(1 + random() % 9),
                       static_cast<int64_t>(1 + random() % 60),
                       depth,
                       random() % 4 == 0,
                       random() % 3 == 0,
                       random() % 2 == 0,
                       random() % 2 == 0,
                       random() % 4 == 0,
                       random() % 2 == 0};
          check_any(c, random);
        }
      }
    }
  }
}

TEST(dot_integers_of_long_rows_are_exact) {
  std::mt19937_64 random(4);
  for (Elements x : kX) {
    for (Elements w : kW) {
      for (int64_t rows : {1, 2, 5}) {
        for (bool zeros : {false, true}) {
          check_any({x, w, rows, 5, 5000 + static_cast<int64_t>(random() % 700), false, false, false, true,
                     true, zeros},
                    random);
          check_any({x, w, rows, 5, 66000, false, rows == 2, false, false, true, zeros}, random);
        }
      }
    }
  }
}

TEST(dot_integers_of_many_rows) {
  std::mt19937_64 random(5);
  for (Elements w : kW) {
    check_any({Elements::uint8, w, 259, 50, 70, false, false, true, true, false, true}, random);
    check_any({Elements::int16, w, 513, 25, 20, true, true, true, true, false, false}, random);
  }
}

TEST(dot_without_rows_or_columns) {
  std::mt19937_64 random(6);
  for (Elements w : kW) {
    check_any({Elements::int8, w, 0, 5, 70, false, false, false, true, false, true}, random);
    check_any({Elements::int16, w, 3, 0, 70, false, true, false, true, false, true}, random);
  }
}

// Every odd sum lies on a step, and the double beside it on either side: t / t is 1 only where it is not
// rounded.
TEST(dot_decides_ties_exactly) {
  std::mt19937_64 random(8);
  for (int round = 0; round < 200; ++round) {
    const float t = scale_of(static_cast<int64_t>(random() % (1 << 23)) * 2 + 1), half = 0.5f;
    const int64_t depth = 37, columns = 30, zero = 0;
    std::vector<int8_t> x(depth), w(columns * depth), y(columns);
    for (int8_t& v : x) v = static_cast<int8_t>(random() % 5 - 2);
    for (int8_t& v : w) v = static_cast<int8_t>(random() % 5 - 2);
    std::vector<int64_t> bias(columns);
    for (int64_t& v : bias) v = static_cast<int64_t>(random() % 41) - 20;
    Linear problem{};
    problem.rows = 1;
    problem.columns = columns;
    problem.depth = depth;
    problem.x = {Elements::int8, x.data(), depth};
    problem.x_scale = t;
    problem.w = {Elements::int8, w.data(), depth};
    problem.w_scales = {&half, &zero, 0};
    problem.bias = bias.data();
    problem.bias_type = Elements::int64;
    problem.bias_scales = {&t, nullptr, 0};
    problem.y = {Elements::int8, y.data(), columns, t, 0, -128, 127, 0, 0};
    for (Isa isa : data::isas()) {
      const data::Using use(isa);
      run(problem, 0);
      for (int64_t n = 0; n < columns; ++n) {
        int64_t sum = 2 * bias[n];
        for (int64_t k = 0; k < depth; ++k) sum += x[k] * w[n * depth + k];
        CHECK_EQ(static_cast<int64_t>(y[n]), rounded(sum, 2));
      }
    }
  }
}

TEST(dot_refuses_what_double_cannot_hold) {
  Linear problem{};
  problem.rows = problem.columns = 1;
  problem.x = {Elements::int16, nullptr, 1};
  problem.w = {Elements::int16, nullptr, 1};
  problem.y.type = Elements::int16;
  LinearPlan plan;
  problem.depth = 1 << 22;
  CHECK(plan_linear(problem, &plan));
  problem.depth = (1 << 22) + 1;
  CHECK(!plan_linear(problem, &plan));
  problem.w.type = Elements::float32;
  problem.depth = 1;
  CHECK(!plan_linear(problem, &plan));
  problem.w.type = Elements::int8;
  problem.y.type = Elements::float32;
  CHECK(!plan_linear(problem, &plan));
}
