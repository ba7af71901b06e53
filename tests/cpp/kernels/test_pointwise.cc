// SPDX-License-Identifier: Apache-2.0
// fake_quantize, its gradient, quantize and dequantize: every version equals the definition bit for bit, at
// every length up to two vectors, at odd offsets, for every granularity, and writes nothing outside its part.
#include "../check.h"
#include "data.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

constexpr Grid kGrids[] = {{-8, 7}, {0, 15}, {-127, 127}, {-128, 127}, {0, 255}, {-32767, 32767}};

struct Scales {
  std::vector<float> scale;
  std::vector<int32_t> zero_point;

  Scales(int64_t n, Grid grid) {
    for (int64_t i = 0; i < n; ++i) {
      scale.push_back(0.01f * static_cast<float>(1 + i % 7));
      zero_point.push_back(grid.qmin + static_cast<int32_t>((i * 5 + 3) % (grid.qmax - grid.qmin + 1)));
    }
  }
};

// The four kernels on elements [begin, end), against the definition one value at a time.
template <class T, class Q>
void check_part(const ScaleMap& map, Grid grid, int64_t begin, int64_t end, int64_t offset, uint32_t seed) {
  const int64_t n = map.numel();
  int64_t scales = 1;
  for (int d = 0; d < 3; ++d) scales += (map.dims[d] - 1) * map.strides[d];
  const Scales s(scales, grid);
  std::vector<T> memory = data::mixed<T>(n + offset, 0.01f, seed);
  const T* x = memory.data() + offset;
  const std::vector<T> dy = data::mixed<T>(n, 1.0f, seed + 1);
  data::Guarded<T> y(n, offset), dx(n, offset);
  data::Guarded<Q> q(n, offset);
  data::Guarded<float> back(n, offset);
  fake_quantize(x, y.data(), map, s.scale.data(), s.zero_point.data(), grid, begin, end);
  fake_quantize_backward(dy.data(), x, dx.data(), map, s.scale.data(), s.zero_point.data(), grid, begin, end);
  quantize(x, q.data(), map, s.scale.data(), s.zero_point.data(), grid, begin, end);
  dequantize(q.data(), back.data(), map, s.scale.data(), s.zero_point.data(), begin, end);
  for (int64_t e = begin; e < end; ++e) {
    const int64_t k = e % map.dims[2], j = e / map.dims[2] % map.dims[1], i = e / map.dims[2] / map.dims[1];
    const int64_t at = i * map.strides[0] + j * map.strides[1] + k * map.strides[2];
    const ScaleZeroPoint p{s.scale[at], s.zero_point[at]};
    const int32_t integer = quantize_value(load(x[e]), p, grid);
    const check::Context here("element ", e, " x ", load(x[e]));
    CHECK_EQ(q[e], static_cast<Q>(integer));
    CHECK_BITS(back[e], dequantize_value(integer, p));
    CHECK_BITS(y[e], data::from_float<T>(dequantize_value(integer, p)));
    CHECK_BITS(dx[e], is_representable(load(x[e]), p, grid) ? dy[e] : T{});
  }
  if (begin > 0 || end < n) return;  // inside, what is not written is not looked at
  CHECK(y.intact() && dx.intact() && q.intact() && back.intact());
}

template <class T>
void check_grids(const ScaleMap& map, int64_t begin, int64_t end, int64_t offset, uint32_t seed) {
  for (const Grid& grid : kGrids) {
    const check::Context here("grid ", grid.qmin, "..", grid.qmax);
    if (grid.qmax > 255) {
      check_part<T, int16_t>(map, grid, begin, end, offset, seed);
    } else if (grid.qmin < 0) {
      check_part<T, int8_t>(map, grid, begin, end, offset, seed);
    } else {
      check_part<T, uint8_t>(map, grid, begin, end, offset, seed);
    }
  }
}

template <class T>
void check_lengths() {
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    for (int64_t n = 0; n <= data::kLongest; ++n) {
      const check::Context here(isa_name(isa), " length ", n);
      check_grids<T>(ScaleMap::per_tensor(n), 0, n, n % 3, static_cast<uint32_t>(n));
      if (n > 0) check_grids<T>(ScaleMap::per_channel(2, n, 1), 0, 2 * n, n % 3, static_cast<uint32_t>(n));
    }
  }
}

template <class T>
void check_granularities() {
  // The last four are longer than a block of 16-bit floats that are converted together.
  const ScaleMap maps[] = {ScaleMap::per_channel(3, 4, 5),    ScaleMap::per_channel(1, 7, 33),
                           ScaleMap::per_channel(2, 3, 64),   ScaleMap::per_group(6, 4, 32, 1),
                           ScaleMap::per_group(2, 3, 4, 5),   ScaleMap::per_group(1, 2, 2, 40),
                           ScaleMap::per_tensor(4999),        ScaleMap::per_channel(1, 3, 2049),
                           ScaleMap::per_group(50, 2, 48, 1), ScaleMap::per_channel(3, 2100, 1)};
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    for (const ScaleMap& map : maps) {
      const int64_t n = map.numel();
      const check::Context here(isa_name(isa), " dims ", map.dims[0], "x", map.dims[1], "x", map.dims[2]);
      check_grids<T>(map, 0, n, 1, 7);
      check_grids<T>(map, n / 3, n - 5, 1, 8);  // as a thread gets it: in the middle of a row
      check_grids<T>(map, 4, 4, 0, 9);
    }
  }
}

}  // namespace

TEST(lengths_float32) { check_lengths<float>(); }
TEST(lengths_bfloat16) { check_lengths<BFloat16>(); }
TEST(lengths_float16) { check_lengths<Float16>(); }
TEST(granularities_float32) { check_granularities<float>(); }
TEST(granularities_bfloat16) { check_granularities<BFloat16>(); }
TEST(granularities_float16) { check_granularities<Float16>(); }

TEST(extreme_scales) {
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    for (float scale : {1e-45f, 1.17549435e-38f, 1e-30f, 3e38f}) {
      const check::Context here(isa_name(isa), " scale ", scale);
      const int32_t zero = 3;
      const Grid grid{-128, 127};
      const std::vector<float> x = data::mixed<float>(999, scale, 5);
      std::vector<float> y(x.size());
      fake_quantize(x.data(), y.data(), ScaleMap::per_tensor(999), &scale, &zero, grid, 0, 999);
      for (size_t i = 0; i < x.size(); ++i) {
        CHECK_BITS(y[i], dequantize_value(quantize_value(x[i], {scale, zero}, grid), {scale, zero}));
      }
    }
  }
}

TEST(fake_quantize_is_idempotent) {
  const float scale = 0.037f;
  const int32_t zero = -11;
  const std::vector<float> x = data::mixed<float>(5000, scale, 3);
  std::vector<float> once(x.size()), twice(x.size());
  const ScaleMap map = ScaleMap::per_tensor(5000);
  fake_quantize(x.data(), once.data(), map, &scale, &zero, {-128, 127}, 0, 5000);
  fake_quantize(once.data(), twice.data(), map, &scale, &zero, {-128, 127}, 0, 5000);
  for (size_t i = 0; i < x.size(); ++i) CHECK_BITS(once[i], twice[i]);
}
