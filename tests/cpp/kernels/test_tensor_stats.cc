// SPDX-License-Identifier: Apache-2.0
// tensor_stats: every version equals the definition bit for bit, and the definition equals long double
// arithmetic.
#include "../check.h"
#include "data.h"

using namespace pyquant::kernels;

namespace {

const float kInf = std::numeric_limits<float>::infinity();

struct Exact {
  int64_t count = 0;
  long double mean = 0, std = 0;
  float lo = kInf, hi = -kInf;
};

template <class T>
Exact exact(const T* x, int64_t n) {
  Exact e;
  for (int64_t i = 0; i < n; ++i) {
    const float v = load(x[i]) + 0.0f;
    if (!std::isfinite(v)) continue;
    ++e.count;
    e.mean += v;
    e.lo = std::min(e.lo, v);
    e.hi = std::max(e.hi, v);
  }
  if (e.count == 0) return e;
  e.mean /= static_cast<long double>(e.count);
  for (int64_t i = 0; i < n; ++i) {
    const long double v = load(x[i]);
    if (std::isfinite(static_cast<float>(v))) e.std += (v - e.mean) * (v - e.mean);
  }
  e.std = std::sqrt(e.std / static_cast<long double>(e.count));
  return e;
}

template <class T>
Stats whole(const T* x, int64_t n) {
  std::vector<Stats> parts;
  for (int64_t at = 0; at < n; at += kStatsChunk) {
    parts.push_back(chunk_stats(x + at, std::min(kStatsChunk, n - at)));
  }
  return merge_pairs(parts.data(), static_cast<int64_t>(parts.size()));
}

void near(double found, long double expected, long double bound) {
  const long double error = std::abs(found - expected);
  CHECK_MSG(error <= bound,
            "found " + std::to_string(found) + ", expected " + std::to_string(static_cast<double>(expected)));
}

template <class T>
void check_array(const std::vector<T>& x, int64_t offset = 0) {
  const int64_t n = static_cast<int64_t>(x.size()) - offset;
  const T* from = x.data() + offset;
  Stats definition;
  for (Isa isa : data::isas()) {
    const check::Context here(isa_name(isa), " length ", n);
    const data::Using use(isa);
    const Stats s = whole(from, n);
    if (isa == Isa::scalar) definition = s;
    CHECK_BITS(s.count, definition.count);
    CHECK_BITS(s.mean, definition.mean);
    CHECK_BITS(s.squares, definition.squares);
    CHECK_BITS(s.lo, definition.lo);
    CHECK_BITS(s.hi, definition.hi);
  }
  const Exact e = exact(from, n);
  CHECK_EQ(definition.count, static_cast<double>(e.count));
  CHECK_BITS(definition.lo, e.lo);
  CHECK_BITS(definition.hi, e.hi);
  if (e.count == 0) return;
  // 64 values to a float32 sum: half a unit in the last place each, at most.
  near(definition.mean, e.mean, 64 * 0x1p-24L * e.std + 1e-15L * std::abs(e.mean));
  near(std::sqrt(definition.squares / definition.count), e.std, 64 * 0x1p-24L * e.std);
}

template <class T>
void check_type() {
  for (int64_t n = 0; n <= 2 * data::kLongest; ++n) {
    check_array(data::mixed<T>(n, 1.0f, static_cast<uint32_t>(n)));
    check_array(data::ordinary<T>(n, 1.0f, static_cast<uint32_t>(n)));
  }
  for (int64_t n : {2047, 2048, 2049, 4096, 6145, 65535, 65536, 65537, 200001}) {
    check_array(data::mixed<T>(n, 1.0f, 4));
    check_array(data::ordinary<T>(n, 3.0f, 5));
  }
  for (int64_t offset : {1, 2, 3, 7}) check_array(data::ordinary<T>(3000, 1.0f, 6), offset);
}

}  // namespace

TEST(tensor_stats_float32) { check_type<float>(); }
TEST(tensor_stats_bfloat16) { check_type<BFloat16>(); }
TEST(tensor_stats_float16) { check_type<Float16>(); }

TEST(tensor_stats_do_not_cancel) {
  // A mean of 2^23 and a spread of one: squares of the values themselves would leave no digit of the
  // variance.
  std::vector<float> x = data::ordinary<float>(150000, 1.0f, 8);
  for (float& v : x) v += 8388608.0f;
  check_array(x);
  x[0] = -1e30f;  // nor does an outlier first
  check_array(x);
}

TEST(tensor_stats_of_equal_values_are_exact) {
  for (float v : {0.1f, -3e38f, 1e-45f, 0.0f}) {
    const std::vector<float> x(70001, v);
    for (Isa isa : data::isas()) {
      const data::Using use(isa);
      const Stats s = whole(x.data(), static_cast<int64_t>(x.size()));
      CHECK_EQ(s.mean, static_cast<double>(v));
      CHECK_EQ(s.squares, 0.0);
    }
  }
}

TEST(tensor_stats_of_any_magnitude) {
  for (int exponent = -140; exponent <= 120; exponent += 4) {
    const check::Context here("2^", exponent);
    std::vector<float> x = data::ordinary<float>(5000, 1.0f, 10);
    for (float& v : x) v = std::ldexp(v, exponent);
    check_array(x);
  }
}

TEST(tensor_stats_of_nothing_finite) {
  std::vector<float> x(5000, std::nanf(""));
  x[7] = kInf;
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    const Stats s = whole(x.data(), 5000);
    CHECK_EQ(s.count, 0.0);
    CHECK_EQ(s.lo, kInf);
    CHECK_EQ(s.hi, -kInf);
  }
}

TEST(a_whole_block_that_is_not_finite_is_left_out) {
  std::vector<float> x = data::ordinary<float>(3 * 2048, 1.0f, 9);
  for (int64_t i = 2048; i < 4096; ++i) x[i] = kInf;
  check_array(x);
}
