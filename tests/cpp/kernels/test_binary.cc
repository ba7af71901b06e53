// SPDX-License-Identifier: Apache-2.0
// Two operands that broadcast: quantized results against exact arithmetic, value by value; plain ones against
// the obvious; every version the same bits.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../check.h"
#include "data.h"
#include "kernels/binary.h"
#include "kernels/exact.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

constexpr Binary kAll[] = {Binary::add,       Binary::sub,      Binary::mul, Binary::div,
                           Binary::maximum,   Binary::minimum,  Binary::pow, Binary::squared_difference,
                           Binary::floor_div, Binary::floor_mod};

template <class Q>
Grid grid_of() {
  return {std::numeric_limits<Q>::min(), std::numeric_limits<Q>::max()};
}

/// The definition: what the header says, from exact sums of products.
template <class Q>
Q right(Binary op, Q qa, Q qb, ScaleZeroPoint sa, ScaleZeroPoint sb, ScaleZeroPoint out) {
  const double a = static_cast<double>(qa - sa.zero_point) * sa.scale;
  const double b = static_cast<double>(qb - sb.zero_point) * sb.scale;
  const int64_t lo = grid_of<Q>().qmin - out.zero_point, hi = grid_of<Q>().qmax - out.zero_point;
  const auto round = [&](std::initializer_list<Product> products, double d) {
    return static_cast<Q>(round_exact(products, d, out.scale, lo, hi) + out.zero_point);
  };
  const auto saturated = [&](double v) {
    return static_cast<Q>((v > 0 ? hi : lo) + out.zero_point);  // also NaN
  };
  switch (op) {
    case Binary::add:
      return round({{a, 1}, {b, 1}}, 1);
    case Binary::sub:
      return round({{a, 1}, {b, -1}}, 1);
    case Binary::mul:
      return round({{a, b}}, 1);
    case Binary::div:
      return b == 0 ? saturated(a / b) : b > 0 ? round({{a, 1}}, b) : round({{-a, 1}}, -b);
    case Binary::maximum:
      return round({{std::max(a, b), 1}}, 1);
    case Binary::minimum:
      return round({{std::min(a, b), 1}}, 1);
    case Binary::squared_difference:
      return round({{a, a}, {-2 * a, b}, {b, b}}, 1);
    case Binary::floor_div: {
      if (b == 0) return saturated(a / b);
      const double r = std::fmod(a, b);
      const double n = std::round((a - r) / b) - (r != 0 && (r < 0) != (b < 0) ? 1 : 0);
      return round({{n, 1}}, 1);
    }
    case Binary::floor_mod: {
      if (b == 0) return saturated(NAN);
      const double r = std::fmod(a, b);
      return r != 0 && (r < 0) != (b < 0) ? round({{r, 1}, {b, 1}}, 1) : round({{r, 1}}, 1);
    }
    default: {
      const double y = std::pow(a, b);
      return std::isfinite(y) && std::fabs(y) < 1e200 ? round({{y, 1}}, 1) : saturated(y);
    }
  }
}

template <class Q>
std::vector<Q> integers(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  const Grid grid = grid_of<Q>();
  std::vector<Q> q(n);
  for (Q& v : q) {
    const uint32_t r = random();
    v = static_cast<Q>(r % 8 == 0 ? grid.qmin : r % 8 == 1 ? grid.qmax : r % 8 == 2 ? (r >> 8) % 5 : r >> 8);
  }
  return q;
}

template <class Q>
void quantized_is_right(ScaleZeroPoint sa, ScaleZeroPoint sb, ScaleZeroPoint out) {
  const int32_t shape[] = {3, 173};
  Broadcast map;
  CHECK(Broadcast::make(shape, 2, shape, 2, &map));
  const int64_t n = map.numel();
  const auto a = integers<Q>(n, 3), b = integers<Q>(n, 4);
  for (Binary op : kAll) {
    check::Context here("op ", static_cast<int>(op), " scales ", sa.scale, " ", sb.scale, " ", out.scale);
    const BinaryPlan plan = BinaryPlan::make(op, Fused::none, sa, sb, out, grid_of<Q>());
    for (Isa isa : data::isas()) {
      data::Using use(isa);
      data::Guarded<Q> y(n, 1);
      binary_quantized(plan, map, a.data(), b.data(), y.data(), 0, 100);  // as threads would
      binary_quantized(plan, map, a.data(), b.data(), y.data(), 100, n);
      CHECK(y.intact());
      for (int64_t i = 0; i < n; ++i) CHECK_EQ(y[i], right<Q>(op, a[i], b[i], sa, sb, out));
    }
  }
}

}  // namespace

TEST(binary_quantized_is_correctly_rounded) {
  quantized_is_right<int16_t>({3.1e-4f, 0}, {1.7e-4f, 0}, {2.3e-4f, 0});
  quantized_is_right<int16_t>({3.1e-4f, 500}, {1.7e-2f, -7}, {2.3e-3f, 12});
  quantized_is_right<int16_t>({0.5f, 0}, {0.25f, 0}, {0.5f, 0});  // short ratios, half of them ties
  quantized_is_right<int16_t>({0.1f, 0}, {0.1f, 0}, {0.2f, 0});
  quantized_is_right<int16_t>({5.0f, 3}, {5.0f, 0}, {6.0f, 0});     // ties without short ratios
  quantized_is_right<int16_t>({1e20f, 3}, {1e20f, 0}, {1e-3f, 0});  // sums that cancel
  quantized_is_right<int16_t>({0x1p-149f, 3}, {0x1p-140f, 0}, {0x1p-149f, 0});
  quantized_is_right<int8_t>({0.02f, 4}, {0.03f, -100}, {0.05f, 3});
  quantized_is_right<int8_t>({1.0f, 0}, {0.5f, 0}, {2.0f, 0});
  quantized_is_right<uint8_t>({0.02f, 128}, {0.03f, 0}, {0.05f, 255});
}

TEST(binary_fused_activations_limit_the_real_number) {
  const int32_t shape[] = {4};
  Broadcast map;
  CHECK(Broadcast::make(shape, 1, shape, 1, &map));
  const int8_t a[] = {-100, 10, 60, 127}, zero[] = {0, 0, 0, 0};
  const ScaleZeroPoint in{0.1f, 0}, out{0.08f, -10};
  const auto run = [&](Fused fused) {
    std::vector<int> y(4);
    int8_t q[4];
    binary_quantized(BinaryPlan::make(Binary::add, fused, in, in, out, {-128, 127}), map, a, zero, q, 0, 4);
    std::copy(q, q + 4, y.begin());
    return y;
  };
  CHECK(run(Fused::none) == (std::vector<int>{-128, 3, 65, 127}));
  CHECK(run(Fused::relu) == (std::vector<int>{-10, 3, 65, 127}));
  CHECK(run(Fused::relu6) == (std::vector<int>{-10, 3, 65, 65}));       // 6 / 0.08 = 75
  CHECK(run(Fused::relu_n1_to_1) == (std::vector<int>{-23, 3, 3, 3}));  // 1 / 0.08f is more than 12.5
  CHECK(run(Fused::tanh) == (std::vector<int>{-23, 0, 2, 3}));
  const float x[] = {-3.0f, 0.5f, 7.0f, NAN}, nothing[] = {0, 0, 0, 0};
  float y[4];
  binary(Binary::add, Fused::relu6, map, x, nothing, y, 0, 4);
  CHECK(y[0] == 0.0f && y[1] == 0.5f && y[2] == 6.0f && std::isnan(y[3]));
  binary(Binary::add, Fused::relu_n1_to_1, map, x, nothing, y, 0, 4);
  CHECK(y[0] == -1.0f && y[1] == 0.5f && y[2] == 1.0f);
  const int32_t i[] = {-3, 5, 7, 0}, none[] = {0, 0, 0, 0};
  int32_t z[4];
  binary(Binary::add, Fused::relu6, map, i, none, z, 0, 4);
  CHECK(z[0] == 0 && z[1] == 5 && z[2] == 6);
}

TEST(binary_float_versions_agree) {
  const int32_t shape[] = {129};
  Broadcast map;
  CHECK(Broadcast::make(shape, 1, shape, 1, &map));
  const auto a = data::mixed<float>(129, 0.3f, 5), b = data::mixed<float>(129, 0.2f, 6);
  for (Binary op : kAll) {
    check::Context here("op ", static_cast<int>(op));
    std::vector<float> expected(129);
    {
      data::Using scalar(Isa::scalar);
      binary(op, Fused::none, map, a.data(), b.data(), expected.data(), 0, 129);
    }
    for (Isa isa : data::isas()) {
      data::Using use(isa);
      data::Guarded<float> y(129);
      binary(op, Fused::none, map, a.data(), b.data(), y.data(), 0, 129);
      CHECK(y.intact());
      for (int64_t i = 0; i < 129; ++i) {
        if (!(std::isnan(y[i]) && std::isnan(expected[i]))) CHECK_BITS(y[i], expected[i]);
      }
    }
  }
}

TEST(broadcasts_as_numpy_does) {
  const std::vector<std::vector<int32_t>> shapes = {
      {},           {1},          {5},          {4, 5},       {4, 1},
      {1, 5},       {3, 4, 5},    {3, 1, 5},    {3, 4, 1},    {1, 4, 1},
      {2, 3, 4, 5}, {2, 1, 1, 5}, {1, 1, 1, 1}, {2, 3, 1, 1}, {2, 1, 3, 1, 4, 5}};
  for (const auto& a : shapes) {
    for (const auto& b : shapes) {
      const int rank = static_cast<int>(std::max(a.size(), b.size()));
      std::vector<int64_t> dims(rank, 1);
      bool fits = true;
      const auto dim = [&](const std::vector<int32_t>& s, int d) {
        const int skipped = rank - static_cast<int>(s.size());
        return d < skipped ? 1 : s[d - skipped];
      };
      for (int d = 0; d < rank; ++d) {
        const int32_t x = dim(a, d), y = dim(b, d);
        fits = fits && (x == y || x == 1 || y == 1);
        dims[d] = std::max(x, y);
      }
      Broadcast map;
      CHECK_EQ(
          Broadcast::make(a.data(), static_cast<int>(a.size()), b.data(), static_cast<int>(b.size()), &map),
          fits);
      if (!fits) continue;
      int64_t n = 1;
      for (int64_t d : dims) n *= d;
      CHECK_EQ(map.numel(), n);
      std::vector<int32_t> left(n), right(n), y(n);
      for (int32_t i = 0; i < n; ++i) left[i] = i, right[i] = 1000 * i;
      const int64_t third = n / 3;
      binary(Binary::add, Fused::none, map, left.data(), right.data(), y.data(), 0, third);
      binary(Binary::add, Fused::none, map, left.data(), right.data(), y.data(), third, n);
      for (int64_t o = 0; o < n; ++o) {
        int64_t rest = o, at_a = 0, at_b = 0, step_a = 1, step_b = 1;
        for (int d = rank - 1; d >= 0; --d) {
          const int64_t index = rest % dims[d];
          rest /= dims[d];
          if (dim(a, d) > 1) at_a += index * step_a;
          if (dim(b, d) > 1) at_b += index * step_b;
          step_a *= dim(a, d);
          step_b *= dim(b, d);
        }
        CHECK_EQ(static_cast<int64_t>(y[o]), at_a + 1000 * at_b);
      }
    }
  }
}

TEST(broadcast_of_nothing_and_of_many_dimensions) {
  const int32_t none[] = {0, 5}, row[] = {5}, four[] = {2, 2}, nothing[60] = {};
  Broadcast map;
  CHECK(Broadcast::make(none, 2, row, 1, &map));
  CHECK_EQ(map.numel(), int64_t{0});
  float y = 1.0f;
  binary<float>(Binary::add, Fused::none, map, &y, &y, &y, 0, 0);
  CHECK_EQ(y, 1.0f);
  CHECK(Broadcast::make(nothing, 60, nothing, 60, &map));
  CHECK_EQ(map.numel(), int64_t{0});
  CHECK(!Broadcast::make(four, 2, row, 1, &map));
  // Every second dimension is one of a, the others of b: none of them join.
  int32_t a[20], b[20];
  for (int d = 0; d < 20; ++d) a[d] = 1 + d % 2, b[d] = 2 - d % 2;
  CHECK(Broadcast::make(a, 20, b, 20, &map));
  std::vector<float> left(1 << 10), right(1 << 10), sum(1 << 20);
  for (size_t i = 0; i < left.size(); ++i)
    left[i] = static_cast<float>(i), right[i] = 1024.0f * static_cast<float>(i);
  binary<float>(Binary::add, Fused::none, map, left.data(), right.data(), sum.data(), 0, 1 << 20);
  for (int i = 0; i < 1 << 20; ++i) {
    int at_a = 0, at_b = 0;
    for (int d = 0; d < 20; ++d) {
      const int bit = i >> (19 - d) & 1;
      (d % 2 ? at_a : at_b) = 2 * (d % 2 ? at_a : at_b) + bit;
    }
    if (sum[static_cast<size_t>(i)] != static_cast<float>(at_a + 1024 * at_b)) CHECK_EQ(i, -1);
  }
}

TEST(binary_integers_have_no_undefined_results) {
  const int32_t values[] = {0, 1, -1, 2, -2, 7, -7, 10, INT32_MAX, INT32_MIN};
  const int32_t shape_a[] = {10, 1}, shape_b[] = {10};
  Broadcast map;
  CHECK(Broadcast::make(shape_a, 2, shape_b, 1, &map));
  int32_t y[100];
  for (Binary op : kAll) {
    binary(op, Fused::none, map, values, values, y, 0, 100);
    for (int i = 0; i < 100; ++i) {
      const int64_t a = values[i / 10], b = values[i % 10];
      check::Context here("op ", static_cast<int>(op), " ", a, " ", b);
      const auto low = [](int64_t v) { return static_cast<int32_t>(static_cast<uint64_t>(v)); };
      const int64_t floor_div = b == 0 ? 0 : a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
      if (op == Binary::add) CHECK_EQ(y[i], low(a + b));
      if (op == Binary::sub) CHECK_EQ(y[i], low(a - b));
      if (op == Binary::mul) CHECK_EQ(y[i], low(a * b));
      if (op == Binary::div) CHECK_EQ(y[i], low(b == 0 ? 0 : a / b));
      if (op == Binary::maximum) CHECK_EQ(y[i], low(std::max(a, b)));
      if (op == Binary::minimum) CHECK_EQ(y[i], low(std::min(a, b)));
      if (op == Binary::floor_div) CHECK_EQ(y[i], low(floor_div));
      if (op == Binary::floor_mod) CHECK_EQ(y[i], low(b == 0 ? 0 : a - floor_div * b));
      if (op == Binary::pow && b == 2) CHECK_EQ(y[i], low(a * a));
      if (op == Binary::pow && b == -1) CHECK_EQ(y[i], a == 1 ? 1 : a == -1 ? -1 : 0);
    }
  }
}

TEST(comparisons_of_real_numbers) {
  const int32_t shape[] = {4};
  Broadcast map;
  CHECK(Broadcast::make(shape, 1, shape, 1, &map));
  const int16_t a[] = {3, 30, -5, 32767}, b[] = {30, 3, -50, 1};
  const ScaleZeroPoint one{1.0f, 0}, tenth{0.1f, 0};  // 0.1f is a little more than a tenth
  const auto run = [&](Compare op) {
    uint8_t y[4];
    compare_quantized(op, map, a, one, b, tenth, y, 0, 4);
    return y[0] * 8 + y[1] * 4 + y[2] * 2 + y[3];
  };
  CHECK_EQ(run(Compare::equal), 0);
  CHECK_EQ(run(Compare::not_equal), 15);
  CHECK_EQ(run(Compare::less), 8);  // 3 < 30 * 0.1f; -5 > -50 * 0.1f
  CHECK_EQ(run(Compare::greater), 7);
  CHECK_EQ(run(Compare::less_equal), 8);
  CHECK_EQ(run(Compare::greater_equal), 7);
  const float x[] = {1, 2, NAN, 3}, z[] = {1, 3, NAN, 2};
  uint8_t y[4];
  compare(Compare::less_equal, map, x, z, y, 0, 4);
  CHECK(y[0] == 1 && y[1] == 1 && y[2] == 0 && y[3] == 0);
  compare(Compare::not_equal, map, x, z, y, 0, 4);
  CHECK(y[0] == 0 && y[2] == 1);
}

TEST(logic_of_any_byte) {
  const int32_t shape[] = {4};
  Broadcast map;
  CHECK(Broadcast::make(shape, 1, shape, 1, &map));
  const uint8_t a[] = {0, 0, 2, 1}, b[] = {0, 1, 1, 0};
  uint8_t y[4];
  logic(Logic::logical_and, map, a, b, y, 0, 4);
  CHECK(y[0] == 0 && y[1] == 0 && y[2] == 1 && y[3] == 0);
  logic(Logic::logical_or, map, a, b, y, 0, 4);
  CHECK(y[0] == 0 && y[1] == 1 && y[2] == 1 && y[3] == 1);
  compare(Compare::equal, map, a, b, y, 0, 4);
  CHECK(y[0] == 1 && y[1] == 0 && y[2] == 1 && y[3] == 0);
  logical_not(a, y, 4);
  CHECK(y[0] == 1 && y[1] == 1 && y[2] == 0 && y[3] == 0);
}
