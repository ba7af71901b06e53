// SPDX-License-Identifier: Apache-2.0
// minmax: every version equals the definition, for every length, granularity and part.
#include "../check.h"
#include "data.h"

using namespace pyquant::kernels;

namespace {

const float kInf = std::numeric_limits<float>::infinity();

struct Result {
  std::vector<float> lo, hi;
  int64_t nonfinite = 0;
};

template <class T>
Result run(Isa isa, const T* x, const ScaleMap& map, const Box& box, int64_t scales) {
  const data::Using use(isa);
  Result r{std::vector<float>(scales, kInf), std::vector<float>(scales, -kInf)};
  r.nonfinite = minmax(x, map, box, r.lo.data(), r.hi.data());
  return r;
}

template <class T>
void check_box(const ScaleMap& map, const Box& box, const std::vector<T>& x) {
  int64_t scales = 1;
  for (int d = 0; d < 3; ++d) scales += (map.dims[d] - 1) * map.strides[d];
  Result expected{std::vector<float>(scales, kInf), std::vector<float>(scales, -kInf)};
  for (int64_t i = box.begin[0]; i < box.end[0]; ++i) {
    for (int64_t j = box.begin[1]; j < box.end[1]; ++j) {
      for (int64_t k = box.begin[2]; k < box.end[2]; ++k) {
        const float v = load(x[(i * map.dims[1] + j) * map.dims[2] + k]) + 0.0f;
        const int64_t s = i * map.strides[0] + j * map.strides[1] + k * map.strides[2];
        if (std::isfinite(v)) {
          expected.lo[s] = std::min(expected.lo[s], v);
          expected.hi[s] = std::max(expected.hi[s], v);
        } else {
          ++expected.nonfinite;
        }
      }
    }
  }
  for (Isa isa : data::isas()) {
    const check::Context here(isa_name(isa));
    const Result r = run(isa, x.data(), map, box, scales);
    CHECK_EQ(r.nonfinite, expected.nonfinite);
    for (int64_t s = 0; s < scales; ++s) {
      CHECK_BITS(r.lo[s], expected.lo[s]);
      CHECK_BITS(r.hi[s], expected.hi[s]);
    }
  }
}

template <class T>
void check_whole(const ScaleMap& map, const std::vector<T>& x) {
  check_box(map, {{0, 0, 0}, {map.dims[0], map.dims[1], map.dims[2]}}, x);
}

// Rows of groups: as many as are reduced together and some more, all lengths to past the longest short one.
template <class T>
void check_groups() {
  for (int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 63, 64, 100, 127, 128, 253, 256, 257}) {
    for (int64_t rows : {1, 3, 4, 5, 11}) {
      const check::Context here("group ", n, " rows ", rows);
      const auto seed = static_cast<uint32_t>(n * 16 + rows);
      const ScaleMap map = ScaleMap::per_group(1, rows, n, 1);
      std::vector<T> x = data::ordinary<T>(n * rows, 1.0f, seed);
      check_whole(map, x);
      check_whole(map, data::mixed<T>(n * rows, 1.0f, seed));
      check_box(map, {{0, rows / 3, 0}, {1, rows, n}}, x);
      check_box(map, {{0, 0, n / 2}, {1, rows, n}}, x);
      x[n * rows - 1] = data::from_float<T>(std::nanf(""));  // one value of the last row
      check_whole(map, x);
      x[0] = data::from_float<T>(-kInf);
      check_whole(map, x);
      std::fill(x.begin(), x.end(), data::from_float<T>(-0.0f));
      check_whole(map, x);
      check_whole(ScaleMap::per_tensor(n * rows), x);
      for (T& v : x) v = data::from_float<T>(-3.0f);
      check_whole({{1, rows, n}, {0, 0, 0}}, x);  // rows that share a scale
    }
  }
}

template <class T>
void check_type() {
  check_groups<T>();
  for (int64_t n = 0; n <= 2 * data::kLongest; ++n) {
    const check::Context here("length ", n);
    check_whole(ScaleMap::per_tensor(n), data::mixed<T>(n, 1.0f, static_cast<uint32_t>(n)));
    check_whole(ScaleMap::per_tensor(n), data::ordinary<T>(n, 1.0f, static_cast<uint32_t>(n)));
    if (n > 0)
      check_whole(ScaleMap::per_channel(3, n, 1), data::mixed<T>(3 * n, 1.0f, static_cast<uint32_t>(n)));
  }
  for (int64_t n : {2047, 2048, 2049, 4095, 4096, 4097, 10000}) {
    check_whole(ScaleMap::per_tensor(n), data::mixed<T>(n, 1.0f, 4));
    check_whole(ScaleMap::per_channel(2, 3, n), data::mixed<T>(6 * n, 1.0f, 5));
    check_whole(ScaleMap::per_channel(3, n, 1), data::mixed<T>(3 * n, 1.0f, 6));
  }
  for (const ScaleMap& map : {ScaleMap::per_channel(3, 4, 70), ScaleMap::per_group(5, 3, 32, 1),
                              ScaleMap::per_group(2, 3, 4, 19)}) {
    const std::vector<T> x = data::mixed<T>(map.numel(), 1.0f, 11);
    check_whole(map, x);
    Box part{{0, 0, 0}, {map.dims[0], map.dims[1], map.dims[2]}};
    const int d = independent_dim(map);
    part.begin[d] = map.dims[d] / 3;
    part.end[d] = map.dims[d] - 1;
    check_box(map, part, x);
  }
}

}  // namespace

TEST(minmax_float32) { check_type<float>(); }
TEST(minmax_bfloat16) { check_type<BFloat16>(); }
TEST(minmax_float16) { check_type<Float16>(); }

TEST(nothing_finite_leaves_the_range_empty) {
  const std::vector<float> x(300, std::nanf(""));
  for (Isa isa : data::isas()) {
    const Result r = run(isa, x.data(), ScaleMap::per_tensor(300), {{0, 0, 0}, {1, 1, 300}}, 1);
    CHECK_EQ(r.lo[0], kInf);
    CHECK_EQ(r.hi[0], -kInf);
    CHECK_EQ(r.nonfinite, 300);
  }
}

TEST(negative_zero_counts_as_zero) {
  const std::vector<float> x(200, -0.0f);
  for (Isa isa : data::isas()) {
    const Result r = run(isa, x.data(), ScaleMap::per_tensor(200), {{0, 0, 0}, {1, 1, 200}}, 1);
    CHECK_BITS(r.lo[0], 0.0f);
    CHECK_BITS(r.hi[0], 0.0f);
  }
}
