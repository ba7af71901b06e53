// SPDX-License-Identifier: Apache-2.0
// round_exact against 128-bit integers: random sums, sums on a step and one unit beside it, saturation; and
// the promise of near_tie and nearest.
#include "kernels/exact.h"

#include <random>
#include <vector>

#include "../check.h"
#include "data.h"

using namespace pyquant::kernels;

namespace {

__extension__ using Wide = __int128;

/// round_half_away(number / divisor), saturated.
int64_t by_integers(Wide number, Wide divisor, int64_t lo, int64_t hi) {
  const bool negative = number < 0;
  const Wide size = ((negative ? -number : number) * 2 + divisor) / (2 * divisor);
  const Wide r = negative ? -size : size;
  return r < lo ? lo : r > hi ? hi : static_cast<int64_t>(r);
}

/// An integer of up to 80 bits as two products.
void split(Wide number, Product* products) {
  const Wide high = number >> 40;
  products[0] = {static_cast<double>(static_cast<int64_t>(high)), 0x1p40};
  products[1] = {static_cast<double>(static_cast<int64_t>(number - high * (Wide{1} << 40))), 1.0};
}

int64_t magnitude_of(std::mt19937_64& random, int bits) {
  return static_cast<int64_t>(random() >> (64 - 1 - random() % bits));
}

}  // namespace

TEST(exact_rounds_random_sums) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200000; ++round) {
    const int n = 1 + round % 4;
    Product products[4];
    Wide number = 0;
    for (int i = 0; i < n; ++i) {
      const int64_t a = magnitude_of(random, 31) * (random() % 2 ? 1 : -1), b = magnitude_of(random, 48);
      products[i] = {static_cast<double>(a), static_cast<double>(b)};
      number += static_cast<Wide>(a) * b;
    }
    const int64_t d1 = 1 + magnitude_of(random, 24), d2 = 1 + magnitude_of(random, 24);
    const int64_t hi = magnitude_of(random, 40), lo = -magnitude_of(random, 40);
    CHECK_EQ(round_exact(products, n, static_cast<double>(d1), static_cast<double>(d2), lo, hi),
             by_integers(number, static_cast<Wide>(d1) * d2, lo, hi));
  }
}

TEST(exact_rounds_sums_of_many_at_and_beside_a_step) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 2000; ++round) {
    const auto n = static_cast<size_t>(9 + random() % 300);
    std::vector<Product> products(n);
    Wide sum = 0;
    for (Product& each : products) {
      const int64_t a = magnitude_of(random, 20) * (random() % 2 ? 1 : -1), b = magnitude_of(random, 40);
      each = {static_cast<double>(a), static_cast<double>(b)};
      sum += static_cast<Wide>(a) * b;
    }
    // One more pair of products makes the sum a step, or a unit more or less.
    const int64_t d = 2 * (1 + magnitude_of(random, 20)), k = magnitude_of(random, 15) * (round % 2 ? 1 : -1);
    for (int beside = -1; beside <= 1; ++beside) {
      const Wide wanted = static_cast<Wide>(2 * k + 1) * (d / 2) + beside;
      std::vector<Product> all = products;
      all.resize(n + 2);
      split(wanted - sum, &all[n]);
      CHECK_EQ(round_exact(all.data(), static_cast<int64_t>(all.size()), static_cast<double>(d), 1.0, -40000,
                           40000),
               by_integers(wanted, d, -40000, 40000));
    }
  }
}

TEST(exact_rounds_at_and_beside_a_step) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 200000; ++round) {
    const int64_t d1 = 1 + magnitude_of(random, 24), d2 = (1 + magnitude_of(random, 24)) * 2;
    const Wide divisor = static_cast<Wide>(d1) * d2;
    const int64_t k = magnitude_of(random, 30);
    const Wide step = (2 * static_cast<Wide>(k) + 1) * (divisor / 2);
    for (int beside = -2; beside <= 2; ++beside) {
      for (int sign : {-1, 1}) {
        const check::Context here("step ", k, " beside ", beside, " sign ", sign);
        const Wide number = (step + beside) * sign;
        Product products[4] = {{}, {}, {0x1.fffffep30, 0x1.234567p31}, {-0x1.fffffep30, 0x1.234567p31}};
        split(number, products);
        const int64_t expected = by_integers(number, divisor, -(1ll << 40), 1ll << 40);
        const auto of = [&](int n) {
          return round_exact(products, n, static_cast<double>(d1), static_cast<double>(d2), -(1ll << 40),
                             1ll << 40);
        };
        CHECK_EQ(of(2), expected);
        CHECK_EQ(of(4), expected);  // terms that cancel
        const int64_t end = random() % 40000;
        CHECK_EQ(round_exact(products, 4, static_cast<double>(d1), static_cast<double>(d2), -end - 1, end),
                 by_integers(number, divisor, -end - 1, end));
      }
    }
  }
}

TEST(exact_sees_a_step_that_scales_of_float32_hit) {
  // 3 * float(1/3) is above 1 by half a unit of it: 1.5 steps are not 1.5.
  const double third = 1.0f / 3.0f;
  CHECK_EQ(round_exact({{3, third}}, 2.0, 1.0, -128, 127), 1);  // 0.500000015
  CHECK_EQ(round_exact({{-3, third}}, 2.0, 1.0, -128, 127), -1);
  const double tenth = 0.1f, below = std::nextafter(0.05f, 0.0f);
  CHECK_EQ(round_exact({{5, tenth}}, tenth, 2.0, -128, 127), 3);  // 2.5
  CHECK_EQ(round_exact({{-5, tenth}}, tenth, 2.0, -128, 127), -3);
  CHECK_EQ(round_exact({{50, below}}, tenth, 10.0, -128, 127), 2);  // just below 2.5
  CHECK_EQ(round_exact({{5, tenth}, {0x1p-60, 0x1p-300}}, -(-tenth), 2.0, -128, 127), 3);
  CHECK_EQ(round_exact({{5, tenth}, {-0x1p-60, 0x1p-300}}, tenth, 2.0, -128, 127), 2);
  CHECK_EQ(round_exact({{1, 0x1p-1}, {0, 3}}, 1.0, 1.0, -128, 127), 1);
  CHECK_EQ(round_exact({{0, 3}}, 1.0, 1.0, -128, 127), 0);
  CHECK_EQ(round_exact({}, 1.0, 1.0, 3, 127), 3);
  CHECK_EQ(round_exact({{1, 0x1p200}}, 0x1p-100, 1.0, -32768, 32767), 32767);
  CHECK_EQ(round_exact({{-1, 0x1p200}}, 0x1p-100, 1.0, -32768, 32767), -32768);
  CHECK_EQ(round_exact({{1, 0x1p-200}}, 0x1p100, 1.0, -32768, 32767), 0);
}

TEST(nearest_is_right_where_no_step_is_near) {
  for (double v : {0.0, 0.25, 0.75, 1.4999, 1.5001, 126.6, 127.4, 1e300}) {
    for (double signed_v : {v, -v}) {
      CHECK(!near_tie(signed_v, v == 1e300 ? 1.0 : v));
      const double expected = std::round(signed_v);
      CHECK_EQ(nearest(signed_v, -128, 127), expected < -128 ? -128 : expected > 127 ? 127 : expected);
    }
  }
  for (double v : {0.5, 1.5, 0.49999999999999994, 2.5000000000000004, 126.5})
    CHECK(near_tie(v, v) && near_tie(-v, v));
  CHECK(near_tie(0.25, 0x1p47));  // what was added up is so large that its errors decide
  const double infinite = std::numeric_limits<double>::infinity(), nan = infinite - infinite;
  CHECK(near_tie(nan, 1) && near_tie(1, infinite) && near_tie(infinite, infinite));
  CHECK_EQ(nearest(nan, -8, 7), -8);
  CHECK_EQ(nearest(infinite, -8, 7), 7);
  CHECK_EQ(nearest(-infinite, -8, 7), -8);
}
