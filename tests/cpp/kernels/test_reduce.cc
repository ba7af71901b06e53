// SPDX-License-Identifier: Apache-2.0
// Reductions over every set of axes, running sums, order: against loops over coordinates.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../check.h"
#include "data.h"
#include "kernels/exact.h"
#include "kernels/order.h"
#include "kernels/reduce.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

template <class T>
constexpr bool kQuantized = std::is_integral_v<T> && sizeof(T) <= 2;

template <class T>
Grid grid_of() {
  return {std::numeric_limits<T>::min(), std::numeric_limits<T>::max()};
}

template <class T>
std::vector<T> values(int64_t n, uint32_t seed) {
  std::mt19937_64 random(seed);
  if constexpr (std::is_same_v<T, float>) return data::ordinary<float>(n, 2.0f, seed);
  std::vector<T> q(n);
  for (T& v : q) v = static_cast<T>(random());
  return q;
}

constexpr ScaleZeroPoint kIn{0.03f, 3}, kOut{0.5f, -2}, kTies{0.015625f, 0}, kTiesOut{0.03125f, 0};

template <class T>
T right(Reduction kind, const std::vector<T>& group, ScaleZeroPoint in, ScaleZeroPoint out) {
  const auto n = static_cast<int64_t>(group.size());
  const auto [low, high] = std::minmax_element(group.begin(), group.end());
  const T extreme = kind == Reduction::min ? *low : *high;
  const bool sums = kind == Reduction::sum || kind == Reduction::mean;
  if constexpr (std::is_same_v<T, float>) {
    if (!sums) return extreme;
    double sum = 0;
    for (T v : group) sum += v;
    return static_cast<float>(kind == Reduction::mean ? sum / static_cast<double>(n) : sum);
  } else if constexpr (kQuantized<T>) {
    int64_t sum = 0;
    for (T v : group) sum += v - in.zero_point;
    if (!sums) sum = extreme - in.zero_point;
    return static_cast<T>(round_exact({{static_cast<double>(sum), in.scale}},
                                      kind == Reduction::mean ? static_cast<double>(n) : 1.0, out.scale,
                                      grid_of<T>().qmin - out.zero_point,
                                      grid_of<T>().qmax - out.zero_point) +
                          out.zero_point);
  } else {
    uint64_t sum = 0;
    for (T v : group) sum += static_cast<uint64_t>(v);
    if (!sums) return extreme;
    return kind == Reduction::sum ? static_cast<T>(sum) : static_cast<T>(static_cast<int64_t>(sum) / n);
  }
}

template <class T>
void reduces(const std::vector<int32_t>& shape, unsigned axes, ScaleZeroPoint in, ScaleZeroPoint out) {
  const int rank = static_cast<int>(shape.size());
  bool is_reduced[8] = {};
  int64_t n = 1, results = 1;
  for (int d = 0; d < rank; ++d) {
    is_reduced[d] = axes >> d & 1;
    n *= shape[d];
    if (!is_reduced[d]) results *= shape[d];
  }
  const auto x = values<T>(n, axes + 1);
  std::vector<std::vector<T>> groups(results);
  for (int64_t i = 0; i < n; ++i) {
    int64_t rest = i, step = 1, at = 0;
    for (int d = rank - 1; d >= 0; --d) {
      if (!is_reduced[d]) at += rest % shape[d] * step, step *= shape[d];
      rest /= shape[d];
    }
    groups[at].push_back(x[i]);
  }
  for (Reduction kind : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min}) {
    Reduce plan;
    plan.kind = kind;
    ReduceMap::make(shape.data(), rank, is_reduced, &plan.map);
    plan.in = in;
    if constexpr (kQuantized<T>) plan.out = Rounder::make(out, grid_of<T>());
    CHECK_EQ(plan.map.results(), results);
    std::vector<T> first;
    for (Isa isa : data::isas()) {
      data::Using use(isa);
      check::Context here("kind ", static_cast<int>(kind), " axes ", axes, " rank ", rank, " ",
                          isa_name(isa));
      data::Guarded<T> y(results);
      const int64_t some = plan.map.units() / 3;
      reduce(plan, x.data(), y.data(), 0, some);
      reduce(plan, x.data(), y.data(), some, plan.map.units());
      CHECK(y.intact());
      if (first.empty()) first.assign(y.data(), y.data() + results);
      for (int64_t i = 0; i < results; ++i) {
        CHECK_BITS(y[i], first[i]);
        if (groups[i].empty()) continue;
        const T expected = right<T>(kind, groups[i], in, out);
        if constexpr (std::is_same_v<T, float>) {
          CHECK(std::fabs(y[i] - expected) <= std::fabs(expected) * 1e-6f + 1e-12f);
        } else {
          CHECK_EQ(y[i], expected);
        }
      }
    }
  }
}

}  // namespace

TEST(reduces_over_any_axes) {
  const std::vector<std::vector<int32_t>> shapes = {
      {}, {7}, {1}, {3, 5}, {2, 3, 4, 5}, {3, 1, 300}, {5, 1, 1, 3, 1}, {0, 4}, {4, 0}, {2, 33, 2}};
  for (const auto& shape : shapes) {
    for (unsigned axes = 0; axes < 1u << shape.size(); ++axes) {
      reduces<float>(shape, axes, kIn, kOut);
      reduces<int8_t>(shape, axes, kIn, kOut);
      reduces<uint8_t>(shape, axes, kIn, {0.5f, 100});
      reduces<int16_t>(shape, axes, kIn, kOut);
      reduces<int16_t>(shape, axes, kTies, kTiesOut);
      reduces<int32_t>(shape, axes, kIn, kOut);
      reduces<int64_t>(shape, axes, kIn, kOut);
    }
  }
}

TEST(reductions_of_nothing_and_of_nan) {
  const int32_t shape[] = {2, 0};
  const bool axes[] = {false, true};
  Reduce plan;
  plan.kind = Reduction::mean;
  ReduceMap::make(shape, 2, axes, &plan.map);
  CHECK_EQ(plan.map.results(), 2);
  plan.out = Rounder::make({1.0f, 4}, {-128, 127});
  float f[2];
  int8_t q[2];
  reduce(plan, f, f, 0, plan.map.units());
  reduce(plan, q, q, 0, plan.map.units());
  CHECK(std::isnan(f[0]) && q[1] == -128);
  plan.kind = Reduction::sum;
  reduce(plan, f, f, 0, plan.map.units());
  reduce(plan, q, q, 0, plan.map.units());
  CHECK(f[1] == 0.0f && q[0] == 4);
  const float x[] = {1.0f, NAN, 2.0f};
  const int32_t three[] = {3};
  const bool all[] = {true};
  plan.kind = Reduction::max;
  ReduceMap::make(three, 1, all, &plan.map);
  reduce(plan, x, f, 0, 1);
  CHECK(std::isnan(f[0]));
}

template <class T>
void cumsums(ScaleZeroPoint in, ScaleZeroPoint out) {
  constexpr int64_t kOuter = 3, kSize = 9, kInner = 2, kAll = kOuter * kSize * kInner;
  const auto x = values<T>(kAll, 4);
  for (int flags = 0; flags < 4; ++flags) {
    check::Context here("flags ", flags);
    Cumsum plan{kSize, kInner, (flags & 1) != 0, (flags & 2) != 0, in};
    if constexpr (kQuantized<T>) plan.out = Rounder::make(out, grid_of<T>());
    data::Guarded<T> y(kAll);
    cumsum(plan, x.data(), y.data(), 0, 2);
    cumsum(plan, x.data(), y.data(), 2, kOuter * kInner);
    CHECK(y.intact());
    for (int64_t i = 0; i < kAll; ++i) {
      const int64_t place = i / kInner % kSize;
      std::vector<T> group;
      for (int64_t j = 0; j < kSize; ++j) {
        const bool counts = j == place ? !plan.exclusive : plan.reverse ? j > place : j < place;
        if (counts) group.push_back(x[i + (j - place) * kInner]);
      }
      const T zero = kQuantized<T> ? static_cast<T>(out.zero_point) : T{0};
      const T expected = group.empty() ? zero : right<T>(Reduction::sum, group, in, out);
      if constexpr (std::is_same_v<T, float>) {
        CHECK(std::fabs(y[i] - expected) <= 1e-5f);
      } else {
        CHECK_EQ(y[i], expected);
      }
    }
  }
}

TEST(running_sums) {
  cumsums<float>(kIn, kOut);
  cumsums<int8_t>(kIn, kOut);
  cumsums<uint8_t>(kIn, {0.5f, 100});
  cumsums<int16_t>(kIn, kOut);
  cumsums<int16_t>(kTies, kTiesOut);
  cumsums<int32_t>(kIn, kOut);
  cumsums<int64_t>(kIn, kOut);
}

TEST(places_of_extremes) {
  const float nan = NAN;
  const float x[] = {1, 3, 3, -2, nan, 5, nan, 0};
  int64_t y[4];
  arg_extreme(true, x, 4, 1, y, 0, 2);
  CHECK(y[0] == 1 && y[1] == 0);
  arg_extreme(false, x, 4, 1, y, 0, 2);
  CHECK(y[0] == 3 && y[1] == 0);
  arg_extreme(true, x, 2, 4, y, 0, 4);  // columns of two rows
  CHECK(y[0] == 1 && y[1] == 1 && y[2] == 1 && y[3] == 1);
  const uint8_t q[] = {7, 200, 200, 3};
  int32_t z[1];
  arg_extreme(true, q, 4, 1, z, 0, 1);
  CHECK_EQ(z[0], 1);
}

TEST(largest_first_and_the_first_of_equals) {
  const float x[] = {1, 3, 3, -2, NAN, 5};
  int32_t places[6];
  top_places(x, 6, 4, places);
  CHECK(places[0] == 4 && places[1] == 5 && places[2] == 1 && places[3] == 2);
  top_places(x, 6, 6, places);
  CHECK(places[5] == 3);
  top_places(x, 6, 0, places);
}
