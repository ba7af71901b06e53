// SPDX-License-Identifier: Apache-2.0
// Bins nest and merge exactly, every version counts equally, and the ranges are right.
#include "../check.h"
#include "data.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

template <class T>
std::vector<uint32_t> count(Isa isa, const std::vector<T>& x, const Bins& where, int64_t bins, int tables) {
  const data::Using use(isa);
  std::vector<uint32_t> counters(tables * (bins + 1)), sum(bins + 1);
  count_values(x.data(), static_cast<int64_t>(x.size()), where, bins, counters.data(), tables);
  for (size_t i = 0; i < counters.size(); ++i) sum[i % (bins + 1)] += counters[i];
  return sum;
}

template <class T>
void check_counts(const std::vector<T>& x, int64_t bins) {
  double lo = 0, hi = 0;
  for (T v : x) {
    if (!std::isfinite(load(v))) continue;
    lo = std::min(lo, static_cast<double>(load(v)));
    hi = std::max(hi, static_cast<double>(load(v)));
  }
  const Bins where = bins_for(lo, hi, kHistogramExponent, bins);
  std::vector<uint32_t> expected(bins + 1);
  for (T v : x) {
    const double limited = std::max(-0x1p120, std::min(0x1p120, static_cast<double>(load(v))));
    const double index = std::floor(std::ldexp(limited, -where.exponent)) - static_cast<double>(where.first);
    if (std::isfinite(load(v))) CHECK(index >= 0 && index < static_cast<double>(bins));
    ++expected[std::isfinite(load(v)) ? static_cast<int64_t>(index) : bins];
  }
  for (Isa isa : data::isas()) {
    for (int tables : {1, 4}) {
      const check::Context here(isa_name(isa), " tables ", tables, " n ", x.size());
      CHECK(count(isa, x, where, bins, tables) == expected);
    }
  }
}

template <class T>
void check_type() {
  for (int64_t n = 0; n <= data::kLongest; ++n) {
    check_counts(data::ordinary<T>(n, 1.0f, static_cast<uint32_t>(n)), 64);
    check_counts(data::mixed<T>(n, 1.0f, static_cast<uint32_t>(n)), 64);
  }
  check_counts(data::ordinary<T>(5000, 1.0f, 1), 2048);
  check_counts(data::mixed<T>(5000, 1e-20f, 1), 2048);
}

}  // namespace

TEST(counts_float32) { check_type<float>(); }
TEST(counts_bfloat16) { check_type<BFloat16>(); }
TEST(counts_float16) { check_type<Float16>(); }

TEST(bins_are_the_narrowest_that_fit) {
  const Bins b = bins_for(-1.0, 3.0, kHistogramExponent, 16);
  CHECK_EQ(b.exponent, -1);  // from -1 to 3 at 1/4 would take 17 bins
  CHECK_EQ(b.first, -2);
  CHECK_EQ(b.edge(0), -1.0f);
  CHECK_EQ(b.edge(16), 7.0f);
  CHECK_EQ(bins_for(0.0, 0.0, kHistogramExponent, 16).exponent, kHistogramExponent);
  CHECK_EQ(bins_for(1.0, 2.9, 3, 16).exponent, 3);
  for (double most : {1e38, 3.4e38, 1e300})
    CHECK(std::isfinite(bins_for(-most, most, kHistogramExponent, 2).edge(2)));
}

TEST(a_range_names_its_bins) {
  for (int64_t bins : {2, 16, 2048, 1000}) {
    for (double hi : {0.0, 1e-30, 0.7, 1e30}) {
      const Bins b = bins_for(-0.3 * hi, hi, kHistogramExponent, bins);
      const float range[] = {b.edge(0), b.edge(bins)};
      Bins read{};
      CHECK(bins_of(range, bins, &read));
      CHECK_EQ(read.exponent, b.exponent);
      CHECK_EQ(read.first, b.first);
    }
  }
  Bins read{};
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto& bad :
       {std::pair{inf, -inf}, {0.0f, 0.0f}, {0.0f, 3.0f}, {1.0f, 17.0f}, {0.0f, inf}, {0.25f, 16.25f}}) {
    const float range[] = {bad.first, bad.second};
    CHECK(!bins_of(range, 16, &read));
  }
}

TEST(counts_move_exactly_into_wider_bins) {
  const std::vector<float> x = data::ordinary<float>(3000, 1.0f, 2);
  const Bins narrow = bins_for(-6, 6, kHistogramExponent, 256),
             wide = bins_for(-6, 900, kHistogramExponent, 256);
  const std::vector<uint32_t> few = count(Isa::scalar, x, narrow, 256, 1),
                              direct = count(Isa::scalar, x, wide, 256, 1);
  const std::vector<int64_t> from(few.begin(), few.end() - 1);
  std::vector<int64_t> to(256);
  add_counts(from.data(), narrow, 256, to.data(), wide);
  for (int b = 0; b < 256; ++b) CHECK_EQ(to[b], static_cast<int64_t>(direct[b]));
}

TEST(percentiles_are_linear_within_a_bin) {
  const Bins where{0, 0};  // bins of width 1 from 0
  const int64_t counts[] = {10, 0, 20, 70};
  const auto at = [&](double lower, double upper) {
    return percentile_range(counts, where, 4, lower, upper);
  };
  CHECK_EQ(at(0, 100).lo, 0.0f);
  CHECK_EQ(at(0, 100).hi, 4.0f);
  CHECK_EQ(at(5, 20).lo, 0.5f);
  CHECK_EQ(at(5, 20).hi, 2.5f);
  CHECK_EQ(at(10, 65).lo, 1.0f);
  CHECK_EQ(at(10, 65).hi, 3.5f);
  const int64_t none[4] = {};
  CHECK(std::isnan(percentile_range(none, where, 4, 0, 100).lo));
  const int64_t inner[] = {0, 5, 0, 0};
  CHECK_EQ(percentile_range(inner, where, 4, 0, 100).lo, 1.0f);
  CHECK_EQ(percentile_range(inner, where, 4, 0, 100).hi, 2.0f);
}

TEST(least_error_leaves_out_a_lone_outlier) {
  const Bins where{-6, 0};
  std::vector<int64_t> counts(2048);
  for (int b = 0; b < 64; ++b) counts[b] = 1000000;  // up to 1
  counts[2047] = 1;                                  // one near 32
  Range first{};
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    const Range r = least_error_range(counts.data(), where, 2048, {0, 15}, false);
    CHECK(r.hi < 1.1f && r.hi > 0.9f);
    if (isa == Isa::scalar) first = r;
    CHECK_BITS(r.lo, first.lo);
    CHECK_BITS(r.hi, first.hi);
  }
}

TEST(least_error_versions_agree) {
  for (uint32_t seed = 0; seed < 5; ++seed) {
    const std::vector<float> x = data::ordinary<float>(2000, 1.0f, seed);
    const Bins where = bins_for(-6, 6, kHistogramExponent, 500);
    const std::vector<uint32_t> found = count(Isa::scalar, x, where, 500, 1);
    const std::vector<int64_t> counts(found.begin(), found.end() - 1);
    for (const Grid& grid : {Grid{-7, 7}, Grid{-127, 127}, Grid{-32767, 32767}}) {
      for (bool symmetric : {true, false}) {
        Range first{};
        for (Isa isa : data::isas()) {
          const data::Using use(isa);
          const Range r = least_error_range(counts.data(), where, 500, grid, symmetric);
          if (isa == Isa::scalar) first = r;
          CHECK_BITS(r.lo, first.lo);
          CHECK_BITS(r.hi, first.hi);
        }
      }
    }
  }
}
