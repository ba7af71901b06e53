// SPDX-License-Identifier: Apache-2.0
// Functions of one value: every version the same bits, tables the same as direct computation, roots and
// squares rounded correctly at ties, values outside the domain.
#include <cmath>
#include <thread>
#include <vector>

#include "../check.h"
#include "data.h"
#include "kernels/function_table.h"
#include "kernels/real.h"
#include "kernels/unary.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

constexpr Unary kAll[] = {Unary::neg,   Unary::abs,    Unary::sqrt,      Unary::rsqrt,    Unary::exp,
                          Unary::log,   Unary::square, Unary::floor,     Unary::ceil,     Unary::round,
                          Unary::sin,   Unary::cos,    Unary::tanh,      Unary::logistic, Unary::relu,
                          Unary::relu6, Unary::gelu,   Unary::gelu_tanh, Unary::elu,      Unary::leaky_relu};
constexpr Grid kInt8{-128, 127}, kUint8{0, 255}, kInt16{-32768, 32767};

UnaryFunction function(Unary kind) { return {kind, kind == Unary::leaky_relu ? 0.1f : 0.0f}; }

/// A NaN may have either sign.
void check_same(float a, float b) {
  if (std::isnan(a) && std::isnan(b)) return;
  CHECK_BITS(a, b);
}

}  // namespace

TEST(unary_float_versions_agree) {
  for (Unary kind : kAll) {
    for (int64_t n : {0, 1, 7, 8, 31, 64, 129}) {
      check::Context here("function ", static_cast<int>(kind), " n ", n);
      const auto x = data::mixed<float>(n, 0.05f, static_cast<uint32_t>(n) + 7);
      std::vector<float> expected(n);
      {
        data::Using scalar(Isa::scalar);
        unary(function(kind), x.data(), expected.data(), n);
      }
      for (Isa isa : data::isas()) {
        data::Using use(isa);
        data::Guarded<float> y(n, 3);
        unary(function(kind), x.data(), y.data(), n);
        CHECK(y.intact());
        for (int64_t i = 0; i < n; ++i) check_same(y[i], expected[i]);
      }
    }
  }
}

TEST(unary_real_is_near_the_long_double) {
  for (double x = -40.0; x < 40.0; x += 0.01171875) {
    const long double e = std::exp(static_cast<long double>(x));
    const auto near = [](double y, long double right) {
      return std::fabs(static_cast<long double>(y) - right) <= 0x1p-51L * std::fabs(right);
    };
    CHECK(near(real_exp(x), e));
    CHECK(near(real_expm1(x), std::expm1(static_cast<long double>(x))));
    CHECK(near(real_tanh(x), std::tanh(static_cast<long double>(x))));
    CHECK(near(real_logistic(x), 1.0L / (1.0L + std::exp(-static_cast<long double>(x)))));
  }
}

TEST(unary_ends_of_the_line) {
  const double inf = HUGE_VAL;
  CHECK_EQ(real_exp(-inf), 0.0);
  CHECK_EQ(real_exp(inf), inf);
  CHECK_EQ(real_exp(-745.0), std::exp(-745.0));
  CHECK_EQ(real_exp(1e9), inf);
  CHECK(std::isnan(real_exp(NAN)));
  CHECK_EQ(real_logistic(-inf), 0.0);
  CHECK_EQ(real_logistic(inf), 1.0);
  CHECK_EQ(real_tanh(inf), 1.0);
  CHECK_EQ(real_tanh(-inf), -1.0);
  CHECK_EQ(real_gelu_tanh(-inf), 0.0);
  CHECK_EQ(unary_real({Unary::gelu}, -inf), 0.0);
  CHECK_EQ(unary_real({Unary::gelu}, inf), inf);
  CHECK_EQ(unary_real({Unary::elu}, -inf), -1.0);
  CHECK_EQ(unary_real({Unary::round}, 2.5), 2.0);
  CHECK_EQ(unary_real({Unary::round}, -3.5), -4.0);
  CHECK_EQ(unary_real({Unary::leaky_relu, -2.0f}, -3.0), 6.0);
}

TEST(unary_outside_the_domain) {
  const ScaleZeroPoint in{0.5f, 0}, out{0.01f, 5};
  CHECK_EQ(unary_quantized({Unary::log}, 0, in, out, kInt16), -32768);
  CHECK_EQ(unary_quantized({Unary::log}, -3, in, out, kInt16), -32768);
  CHECK_EQ(unary_quantized({Unary::sqrt}, -3, in, out, kInt16), -32768);
  CHECK_EQ(unary_quantized({Unary::rsqrt}, -3, in, out, kInt16), -32768);
  CHECK_EQ(unary_quantized({Unary::rsqrt}, 0, in, out, kInt16), 32767);
  CHECK_EQ(unary_quantized({Unary::sqrt}, 0, in, out, kInt16), 5);
  CHECK_EQ(unary_quantized({Unary::exp}, 32767, in, out, kInt16), 32767);
}

TEST(unary_versions_agree_on_every_integer) {
  const ScaleZeroPoint in{3.7e-4f, -11}, out{1.3e-3f, 23};
  std::vector<int16_t> x(65536), expected(65536), y(65536);
  for (int i = 0; i < 65536; ++i) x[i] = static_cast<int16_t>(i - 32768);
  for (Unary kind : kAll) {
    check::Context here("function ", static_cast<int>(kind));
    data::Using scalar(Isa::scalar);
    unary_quantized(function(kind), x.data(), in, expected.data(), out, kInt16, 65536);
    for (Isa isa : data::isas()) {
      data::Using use(isa);
      unary_quantized(function(kind), x.data(), in, y.data(), out, kInt16, 65536);
      CHECK(y == expected);
    }
    for (int i = 0; i < 65536; i += 97) {
      CHECK_EQ(unary_quantized(function(kind), x[i], in, out, kInt16), static_cast<int>(expected[i]));
    }
  }
}

// Scales that are powers of two make half of all results ties.
TEST(unary_exact_at_ties) {
  const ScaleZeroPoint in{0.25f, 0};
  for (int q = 0; q <= 2000; ++q) {
    check::Context here("q ", q);
    // sqrt(q / 4) / 0.5 = sqrt(q): the largest k with (k - 1/2)^2 <= q.
    int k = 0;
    while ((2 * k + 1) * (2 * k + 1) <= 4 * q) ++k;
    CHECK_EQ(unary_quantized({Unary::sqrt}, q, in, {0.5f, 0}, kInt16), k);
    // (q / 4)^2 / 0.125 = q^2 / 2.
    CHECK_EQ(unary_quantized({Unary::square}, q, in, {0.125f, 0}, kInt16), std::min(32767, (q * q + 1) / 2));
    CHECK_EQ(unary_quantized({Unary::neg}, q, in, {0.5f, 0}, kInt16), -((q + 1) / 2));
    // 1 / sqrt(q / 4) / (1 / 64) = 128 / sqrt(q): k - 1/2 <= that, (2 k - 1)^2 q <= 256^2.
    if (q == 0) continue;
    k = 0;
    while (int64_t{2 * k + 1} * (2 * k + 1) * q <= 65536) ++k;
    CHECK_EQ(unary_quantized({Unary::rsqrt}, q, in, {1.0f / 64, 0}, kInt16), k);
  }
}

TEST(unary_integers_wrap) {
  const int32_t x[] = {0, 5, -7, INT32_MIN, INT32_MAX};
  int32_t y[5];
  unary_integers(Unary::neg, x, y, 5);
  CHECK_EQ(y[3], INT32_MIN);
  CHECK_EQ(y[2], 7);
  unary_integers(Unary::abs, x, y, 5);
  CHECK_EQ(y[3], INT32_MIN);
  CHECK_EQ(y[2], 7);
  CHECK_EQ(y[1], 5);
  unary_integers(Unary::square, x, y, 5);
  CHECK_EQ(y[2], 49);
  CHECK_EQ(y[4], 1);
}

template <class Q>
void table_is_direct(Grid grid, int64_t entries) {
  const FunctionKey key{{Unary::gelu_tanh}, {0.03f, grid.qmin + 40}, {0.02f, grid.qmin + 50}, grid};
  FunctionTables tables;
  const auto table = tables.get<Q>(key);
  CHECK(tables.get<Q>(key) == table);
  FunctionKey other = key;
  other.out.zero_point += 1;
  CHECK(tables.get<Q>(other) != table);
  std::vector<Q> x(2 * entries), expected(2 * entries), y(2 * entries);
  for (int64_t i = 0; i < 2 * entries; ++i) x[i] = static_cast<Q>(i);
  unary_quantized(key.function, x.data(), key.in, expected.data(), key.out, grid, 2 * entries);
  for (int64_t n : {entries / 3, 2 * entries, entries, entries / 2}) {
    std::fill(y.begin(), y.end(), Q{0});
    table->apply(x.data(), y.data(), n);
    CHECK(std::equal(y.begin(), y.begin() + n, expected.begin()));
  }
}

TEST(tables_are_the_direct_function) {
  table_is_direct<int8_t>(kInt8, 256);
  table_is_direct<uint8_t>(kUint8, 256);
  table_is_direct<int16_t>(kInt16, 65536);
}

TEST(threads_share_a_table) {
  const FunctionKey key{{Unary::logistic}, {0.001f, 0}, {1.0f / 32768, 0}, kInt16};
  FunctionTable<int16_t> table(key);
  std::vector<int16_t> x(65536), expected(65536);
  for (int i = 0; i < 65536; ++i) x[i] = static_cast<int16_t>(i);
  unary_quantized(key.function, x.data(), key.in, expected.data(), key.out, key.grid, 65536);
  bool right[4] = {};
  std::vector<std::thread> threads;
  for (bool& flag : right) {
    threads.emplace_back([&] {
      std::vector<int16_t> y(65536);
      flag = true;
      for (int round = 0; round < 4; ++round) {
        table.apply(x.data(), y.data(), 65536);
        flag = flag && y == expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (bool flag : right) CHECK(flag);
}
