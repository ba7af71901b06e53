// SPDX-License-Identifier: Apache-2.0
// Softmax, norms and ROPE: every version the same bits, and the long double result but near a step.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../check.h"
#include "data.h"
#include "kernels/norm.h"
#include "kernels/softmax.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

using Real = long double;

template <class T>
Grid grid_of() {
  if constexpr (std::is_same_v<T, float>) return {0, 0};
  if constexpr (!std::is_same_v<T, float>)
    return {std::numeric_limits<T>::min(), std::numeric_limits<T>::max()};
}

template <class T>
std::vector<T> values(int64_t n, uint32_t seed) {
  if constexpr (std::is_same_v<T, float>) {
    return data::ordinary<float>(n, 3.0f, seed);
  } else {
    std::mt19937 random(seed);
    std::vector<T> q(n);
    for (T& v : q) v = static_cast<T>(random() >> (seed % 5));
    return q;
  }
}

template <class T>
Real real(T x, ScaleZeroPoint q) {
  if constexpr (std::is_same_v<T, float>) return x;
  return static_cast<Real>(x - q.zero_point) * q.scale;
}

/// y is v rounded, or v lies within 1e-9 of a step.
template <class T>
bool is_rounded(T y, Real v, ScaleZeroPoint q) {
  if constexpr (std::is_same_v<T, float>) return std::fabs(y - v) <= std::fabs(v) * 0x1.0001p-24L + 1e-45L;
  const Grid grid = grid_of<T>();
  v /= q.scale;
  if (std::fabs(std::fabs(v - std::floor(v)) - 0.5L) < 1e-9L) return std::fabs(y - q.zero_point - v) < 0.6L;
  const Real r = std::round(v) + q.zero_point;
  return y == (r < grid.qmin ? grid.qmin : r > grid.qmax ? grid.qmax : r);
}

/// run(out) with every version; all the same, nothing outside written.
template <class T, class Run>
std::vector<T> every_version(int64_t n, Run run) {
  std::vector<T> first;
  for (Isa isa : data::isas()) {
    data::Using use(isa);
    data::Guarded<T> y(n, 1);
    run(y.data());
    CHECK(y.intact());
    if (first.empty()) first.assign(y.data(), y.data() + n);
    for (int64_t i = 0; i < n; ++i) CHECK_BITS(y[i], first[i]);
  }
  return first;
}

template <class T>
void softmax_is_right(ScaleZeroPoint in, ScaleZeroPoint out, int64_t size, bool log) {
  check::Context here("size ", size, " log ", log);
  constexpr int64_t kRows = 3;
  const auto x = values<T>(kRows * size, static_cast<uint32_t>(size));
  Softmax plan{log, log ? 1.0f : 0.75f, size, in.scale};
  if constexpr (!std::is_same_v<T, float>) {
    plan.out = Rounder::make(out, grid_of<T>());
    plan.tabulate();
  }
  const auto y = every_version<T>(kRows * size, [&](T* to) {
    softmax(plan, x.data(), to, 0, 1);
    softmax(plan, x.data(), to, 1, kRows);
  });
  for (int64_t row = 0; row < kRows; ++row) {
    Real most = real(x[row * size], in), sum = 0;
    for (int64_t i = 0; i < size; ++i) most = std::max(most, real(x[row * size + i], in));
    for (int64_t i = 0; i < size; ++i) sum += std::exp((real(x[row * size + i], in) - most) * plan.beta);
    for (int64_t i = 0; i < size; ++i) {
      const Real shifted = (real(x[row * size + i], in) - most) * plan.beta;
      CHECK(is_rounded<T>(y[row * size + i], log ? shifted - std::log(sum) : std::exp(shifted) / sum, out));
    }
  }
}

}  // namespace

TEST(softmax_of_every_length) {
  for (int64_t size : {1, 2, 7, 8, 9, 15, 64, 127, 256, 257, 300, 2048, 2300, 5000}) {
    for (bool log : {false, true}) {
      softmax_is_right<float>({1.0f, 0}, {1.0f, 0}, size, log);
      softmax_is_right<int16_t>({3e-4f, 5}, {log ? 5e-4f : 1.0f / 32768, 0}, size, log);
      softmax_is_right<int8_t>({0.07f, -5}, {log ? 0.1f : 1.0f / 256, log ? 127 : -128}, size, log);
      softmax_is_right<uint8_t>({0.02f, 128}, {log ? 0.05f : 1.0f / 256, log ? 255 : 0}, size, log);
    }
  }
}

TEST(softmax_with_infinities) {
  const float inf = HUGE_VALF;
  const float x[] = {0.0f, -inf, 0.0f, -inf, -inf, -inf, 1.0f, NAN, 2.0f};
  float y[9];
  softmax(Softmax{false, 1.0f, 3}, x, y, 0, 3);
  CHECK(y[0] == 0.5f && y[1] == 0.0f && y[2] == 0.5f);
  for (int i = 3; i < 9; ++i) CHECK(std::isnan(y[i]));
}

template <class T>
void rms_is_right(ScaleZeroPoint in, ScaleZeroPoint out, int64_t size, bool one_gamma) {
  check::Context here("size ", size);
  constexpr int64_t kRows = 3;
  const auto x = values<T>(kRows * size, static_cast<uint32_t>(size) + 1);
  std::vector<double> gamma(size);
  for (int64_t i = 0; i < size; ++i)
    gamma[i] = static_cast<double>(0.5f + 0.01f * static_cast<float>(i % 97));
  RmsNorm plan{1e-6, size, one_gamma, in};
  if constexpr (!std::is_same_v<T, float>) plan.out = Rounder::make(out, grid_of<T>());
  const auto y =
      every_version<T>(kRows * size, [&](T* to) { rms_norm(plan, x.data(), gamma.data(), to, 0, kRows); });
  for (int64_t row = 0; row < kRows; ++row) {
    Real sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += real(x[row * size + i], in) * real(x[row * size + i], in);
    for (int64_t i = 0; i < size; ++i) {
      const Real g = gamma[one_gamma ? 0 : i];
      const Real right = real(x[row * size + i], in) / std::sqrt(sum / size + 1e-6L) * g;
      CHECK(is_rounded<T>(y[row * size + i], right, out));
    }
  }
}

TEST(rms_norm_of_every_length) {
  for (int64_t size : {1, 3, 8, 31, 64, 100, 255, 256, 257, 2048, 3001}) {
    for (bool one : {false, true}) {
      rms_is_right<float>({1.0f, 0}, {1.0f, 0}, size, one);
      rms_is_right<int16_t>({3e-4f, 0}, {1e-4f, 0}, size, one);
      rms_is_right<int16_t>({3e-4f, -32768}, {1e-4f, 100}, size, one);
      rms_is_right<int8_t>({0.05f, 3}, {0.03f, -4}, size, one);
      rms_is_right<uint8_t>({0.05f, 130}, {0.03f, 120}, size, one);
    }
  }
}

TEST(rms_norm_of_zeros_without_epsilon_is_the_lowest_integer) {
  const int8_t x[] = {3, 3};
  const double gamma[] = {1.0};
  int8_t y[2] = {};
  rms_norm(RmsNorm{0.0, 2, true, {0.1f, 3}, Rounder::make({0.1f, 0}, {-128, 127})}, x, gamma, y, 0, 1);
  CHECK(y[0] == -128 && y[1] == -128);
}

template <class T>
void instance_is_right(ScaleZeroPoint in, ScaleZeroPoint out, int64_t positions, int64_t channels,
                       Fused fused) {
  constexpr int64_t kBatch = 2;
  const int64_t n = kBatch * positions * channels;
  const auto x = values<T>(n, static_cast<uint32_t>(channels) + 1);
  std::vector<double> gamma(channels), beta(channels);
  for (int64_t c = 0; c < channels; ++c) gamma[c] = 0.5 + 0.125 * (c % 9), beta[c] = 0.25 * (c % 5) - 0.5;
  InstanceNorm plan{1e-5, positions, channels, false, false, fused, in};
  if constexpr (!std::is_same_v<T, float>) {
    plan.out = Rounder::make(out, grid_of<T>());
    limit(fused, &plan.out);
  }
  const int64_t units = kBatch * plan.units_per_batch();
  const auto y = every_version<T>(n, [&](T* to) {
    instance_norm(plan, x.data(), gamma.data(), beta.data(), to, 0, 1);
    instance_norm(plan, x.data(), gamma.data(), beta.data(), to, 1, units);
  });
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto at = [&](int64_t p) { return (b * positions + p) * channels + c; };
      Real mean = 0, variance = 0;
      for (int64_t p = 0; p < positions; ++p) mean += real(x[at(p)], in);
      mean /= positions;
      for (int64_t p = 0; p < positions; ++p) variance += std::pow(real(x[at(p)], in) - mean, 2.0L);
      variance /= positions;
      for (int64_t p = 0; p < positions; ++p) {
        Real right = (real(x[at(p)], in) - mean) / std::sqrt(variance + 1e-5L) * gamma[c] + beta[c];
        if (fused == Fused::relu) right = std::max(right, 0.0L);
        CHECK(is_rounded<T>(y[at(p)], right, out) ||
              (std::is_same_v<T, float> && std::fabs(y[at(p)] - right) < 1e-9L));
      }
    }
  }
}

TEST(instance_norm_of_odd_sizes) {
  for (int64_t channels : {1, 3, 32, 33, 70}) {
    for (int64_t positions : {1, 2, 35}) {
      check::Context here("channels ", channels, " positions ", positions);
      instance_is_right<float>({1.0f, 0}, {1.0f, 0}, positions, channels, Fused::none);
      instance_is_right<int16_t>({3e-4f, 7}, {2e-4f, 0}, positions, channels, Fused::none);
      instance_is_right<int8_t>({0.04f, 7}, {0.04f, -3}, positions, channels, Fused::relu);
      instance_is_right<uint8_t>({0.04f, 7}, {0.04f, 120}, positions, channels, Fused::none);
    }
  }
}

template <class T>
void rope_is_right(ScaleZeroPoint in, ScaleZeroPoint out, int64_t size, bool neighbours, bool halves) {
  const auto x = values<T>(size, static_cast<uint32_t>(size) + 2);
  std::vector<double> sin(size), cos(size);
  for (int64_t i = 0; i < size; ++i) {
    sin[i] = halves ? 0.5 : static_cast<double>(static_cast<float>(std::sin(0.37 * i)));
    cos[i] = halves ? 0.5 : static_cast<double>(static_cast<float>(std::cos(0.37 * i)));
  }
  Rope plan{neighbours, size, 1, 1, in};
  if constexpr (!std::is_same_v<T, float>) plan.out = Rope::rounder(in, out, grid_of<T>(), 1.0);
  const auto y = every_version<T>(size, [&](T* to) { rope_row(plan, x.data(), sin.data(), cos.data(), to); });
  for (int64_t i = 0; i < size; ++i) {
    const int64_t half = size / 2;
    const Real turned = neighbours ? (i % 2 == 0 ? -real(x[i + 1], in) : real(x[i - 1], in))
                                   : (i < half ? -real(x[i + half], in) : real(x[i - half], in));
    const Real right = real(x[i], in) * cos[i] + turned * sin[i];
    const bool exact = halves && !std::is_same_v<T, float>;  // the long double is, too
    if (exact) {
      Real q = std::round(right / out.scale) + out.zero_point;
      q = std::min<Real>(std::max<Real>(q, grid_of<T>().qmin), grid_of<T>().qmax);
      CHECK_EQ(static_cast<int>(y[i]), static_cast<int>(q));
    } else {
      CHECK(is_rounded<T>(y[i], right, out) || (std::is_same_v<T, float> && std::fabs(y[i] - right) < 1e-9L));
    }
  }
}

TEST(rope_turns_halves_or_neighbours) {
  for (int64_t size : {2, 6, 64, 128, 300}) {
    for (bool neighbours : {false, true}) {
      check::Context here("size ", size, " neighbours ", neighbours);
      rope_is_right<float>({1.0f, 0}, {1.0f, 0}, size, neighbours, false);
      rope_is_right<int16_t>({3e-4f, 0}, {4e-4f, 0}, size, neighbours, false);
      rope_is_right<int16_t>({0.5f, 3}, {0.25f, 0}, size, neighbours, true);
      rope_is_right<int16_t>({0.5f, 3}, {0.5f, 1}, size, neighbours, true);  // ties
      rope_is_right<int8_t>({0.04f, 3}, {0.05f, 1}, size, neighbours, false);
      rope_is_right<uint8_t>({0.5f, 100}, {0.5f, 120}, size, neighbours, true);
    }
  }
}
