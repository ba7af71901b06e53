// SPDX-License-Identifier: Apache-2.0
// Mean, variance and range of the finite values of an array: the statistics that show where a model goes
// wrong.
//
// A block is read twice while it lies in the first cache: for its range and about its mean, then for
// differences from that mean, which are small whatever the mean is, so that their sums may be float32. Blocks
// are merged in double. A block that is not ordinary (NaN, infinities, values so large or small that squares
// leave float32) is summed in double instead.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/convert.h"
#include "kernels/half.h"
#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 2048;
static_assert(kStatsChunk % kBlock == 0);
constexpr float kInf = std::numeric_limits<float>::infinity();
// Largest magnitude of an ordinary block: differences of one unit in its last place, and 64 squares of its
// double, are normal floats.
constexpr float kLeast = 0x1p-30f, kMost = 0x1p57f;

PYQUANT_INLINE bool is_finite(float v) { return (bits_of(v) & 0x7fffffffu) < 0x7f800000u; }

// Sums are 32 sums over every 32nd value, added in pairs half a width apart.
template <class Sum>
PYQUANT_INLINE Sum total(Sum* sum) {
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int l = 0; l < step; ++l) sum[l] += sum[l + step];
  }
  return sum[0];
}

/// Range and sum; where some value is not finite, the sum is not finite and the range is any.
struct Outline {
  float lo, hi, sum;
};

template <class T>
struct OutlineOf {
  static Outline scalar(const T* x, int64_t n) {
    float lo = kInf, hi = -kInf, sum[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) {
      const float v = load(x[i]);
      lo = v < lo ? v : lo;
      hi = v > hi ? v : hi;
      sum[i % kLanes] += v;
    }
    return {lo + 0.0f, hi + 0.0f, total(sum)};  // +0 makes +0 of -0
  }

  PYQUANT_INLINE static Outline vector(const T* x, int64_t n) {
    float lo[kLanes], hi[kLanes], sum[kLanes] = {};
    for (int l = 0; l < kLanes; ++l) lo[l] = kInf, hi[l] = -kInf;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) add(load(x[i + l]), lo[l], hi[l], sum[l]);
    }
    for (int l = 0; i + l < n; ++l) add(load(x[i + l]), lo[l], hi[l], sum[l]);
    for (int step = kLanes / 2; step > 0; step /= 2) {
      for (int l = 0; l < step; ++l) {
        lo[l] = lo[l + step] < lo[l] ? lo[l + step] : lo[l];
        hi[l] = hi[l + step] > hi[l] ? hi[l + step] : hi[l];
      }
    }
    return {lo[0] + 0.0f, hi[0] + 0.0f, total(sum)};
  }

 private:
  PYQUANT_INLINE static void add(float v, float& lo, float& hi, float& sum) {
    lo = v < lo ? v : lo;
    hi = v > hi ? v : hi;
    sum += v;
  }
};

/// Sums of v - center and of its square.
struct Spread {
  double sum, squares;
};

template <class T>
struct SpreadFrom {
  static Spread scalar(const T* x, int64_t n, float center) {
    float sum[kLanes] = {}, squares[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) add(load(x[i]) - center, sum[i % kLanes], squares[i % kLanes]);
    return whole(sum, squares);
  }

  PYQUANT_INLINE static Spread vector(const T* x, int64_t n, float center) {
    float sum[kLanes] = {}, squares[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) add(load(x[i + l]) - center, sum[l], squares[l]);
    }
    for (int l = 0; i + l < n; ++l) add(load(x[i + l]) - center, sum[l], squares[l]);
    return whole(sum, squares);
  }

 private:
  PYQUANT_INLINE static void add(float d, float& sum, float& square) {
    sum += d;
    square += d * d;
  }

  PYQUANT_INLINE static Spread whole(const float* sum, const float* squares) {
    double wide_sum[kLanes], wide_squares[kLanes];
    for (int l = 0; l < kLanes; ++l) wide_sum[l] = sum[l], wide_squares[l] = squares[l];
    return {total(wide_sum), total(wide_squares)};
  }
};

// Any block: only the finite values, in double, twice. Rare, so there is only the definition.
template <class T>
Stats odd_block(const T* x, int64_t n) {
  Stats s;
  double sum[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    const float v = load(x[i]) + 0.0f;
    if (!is_finite(v)) continue;
    s.count += 1;
    s.lo = std::min(s.lo, v);
    s.hi = std::max(s.hi, v);
    sum[i % kLanes] += static_cast<double>(v);
  }
  if (s.count == 0) return s;
  s.mean = total(sum) / s.count;
  double squares[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    const float v = load(x[i]);
    const double d = static_cast<double>(v) - s.mean;
    if (is_finite(v)) squares[i % kLanes] += d * d;
  }
  s.squares = total(squares);
  return s;
}

template <class T>
Stats block_stats(const T* x, int64_t n) {
  const Outline o = dispatch<OutlineOf<T>>(x, n);
  const float magnitude = std::max(-o.lo, o.hi);
  if (is_finite(o.sum) && o.lo == o.hi) return {static_cast<double>(n), o.lo, 0.0, o.lo, o.hi};
  if (!is_finite(o.sum) || !(magnitude >= kLeast && magnitude < kMost)) return odd_block(x, n);
  const float center = o.sum / static_cast<float>(n);
  const Spread d = dispatch<SpreadFrom<T>>(x, n, center);
  const double count = static_cast<double>(n), rest = d.sum / count;
  return {count, static_cast<double>(center) + rest, std::max(d.squares - d.sum * rest, 0.0), o.lo, o.hi};
}

}  // namespace

Stats merge(const Stats& a, const Stats& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  Stats s;
  s.count = a.count + b.count;
  const double delta = b.mean - a.mean;
  s.mean = a.mean + delta * (b.count / s.count);
  s.squares = (a.squares + b.squares) + (delta * delta) * (a.count * b.count / s.count);
  s.lo = b.lo < a.lo ? b.lo : a.lo;
  s.hi = b.hi > a.hi ? b.hi : a.hi;
  return s;
}

Stats merge_pairs(Stats* parts, int64_t n) {
  if (n == 0) return {};
  for (; n > 1; n = (n + 1) / 2) {
    for (int64_t i = 0; i < n / 2; ++i) parts[i] = merge(parts[2 * i], parts[2 * i + 1]);
    if (n % 2 == 1) parts[n / 2] = parts[n - 1];
  }
  return parts[0];
}

template <class T>
Stats chunk_stats(const T* x, int64_t n) {
  Stats parts[kStatsChunk / kBlock];
  int64_t blocks = 0;
  if constexpr (std::is_same_v<T, Float16>) {
    if (has_fast_halves()) {
      static_assert(kHalves == kBlock);
      for_blocks(x, 0, n, [&](const float* values, int64_t, int64_t length) {
        parts[blocks++] = block_stats(values, length);
      });
      return merge_pairs(parts, blocks);
    }
  }
  for (int64_t at = 0; at < n; at += kBlock) parts[blocks++] = block_stats(x + at, std::min(kBlock, n - at));
  return merge_pairs(parts, blocks);
}

template Stats chunk_stats<float>(const float*, int64_t);
template Stats chunk_stats<BFloat16>(const BFloat16*, int64_t);
template Stats chunk_stats<Float16>(const Float16*, int64_t);

}  // namespace pyquant::kernels
