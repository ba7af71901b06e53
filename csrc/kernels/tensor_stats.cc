// SPDX-License-Identifier: Apache-2.0
// Mean, variance and range of the finite values of an array: what a person reads to see where a model goes
// wrong.
#include <algorithm>
#include <limits>

#include "kernels/convert.h"
#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kBlock = 2048;  // stays in the first cache, so that a block is read from memory once
static_assert(kStatsChunk % kBlock == 0);

PYQUANT_INLINE bool is_finite(float v) { return (bits_of(v) & 0x7fffffffu) < 0x7f800000u; }

// Sums over a block are 32 double sums over every 32nd value, added in pairs half a width apart. A value that
// is not finite adds +0, which changes no sum.
PYQUANT_INLINE double total(double* sum) {
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int l = 0; l < step; ++l) sum[l] += sum[l + step];
  }
  return sum[0];
}

struct Identity {
  PYQUANT_INLINE double operator()(double v) const { return v; }
};

struct SquareFrom {
  double mean;
  PYQUANT_INLINE double operator()(double v) const { return (v - mean) * (v - mean); }
};

template <class T, class Term>
struct BlockSum {
  static double scalar(const T* x, int64_t n, bool, Term term) {
    double sum[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) {
      const float v = load(x[i]);
      sum[i % kLanes] += is_finite(v) ? term(static_cast<double>(v)) : 0.0;
    }
    return total(sum);
  }

  PYQUANT_INLINE static double vector(const T* x, int64_t n, bool all_finite, Term term) {
    return all_finite ? run<true>(x, n, term) : run<false>(x, n, term);
  }

 private:
  template <bool kAllFinite>
  PYQUANT_INLINE static double run(const T* x, int64_t n, Term term) {
    double sum[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) sum[l] += value<kAllFinite>(x[i + l], term);
    }
    for (int l = 0; i + l < n; ++l) sum[l] += value<kAllFinite>(x[i + l], term);
    return total(sum);
  }

  template <bool kAllFinite>
  PYQUANT_INLINE static double value(T x, Term term) {
    const float v = load(x);
    const double found = term(static_cast<double>(v));
    return kAllFinite || is_finite(v) ? found : 0.0;
  }
};

// Twice over the block, mean first: squares are of small numbers then, whatever the mean is.
template <class T>
Stats block_stats(const T* x, int64_t n) {
  Stats s;
  const int64_t nonfinite = minmax(x, ScaleMap::per_tensor(n), {{0, 0, 0}, {1, 1, n}}, &s.lo, &s.hi);
  if (nonfinite == n) return s;
  s.count = static_cast<double>(n - nonfinite);
  s.mean = dispatch<BlockSum<T, Identity>>(x, n, nonfinite == 0, Identity{}) / s.count;
  s.squares = dispatch<BlockSum<T, SquareFrom>>(x, n, nonfinite == 0, SquareFrom{s.mean});
  return s;
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
  for (int64_t at = 0; at < n; at += kBlock) parts[blocks++] = block_stats(x + at, std::min(kBlock, n - at));
  return merge_pairs(parts, blocks);
}

template Stats chunk_stats<float>(const float*, int64_t);
template Stats chunk_stats<BFloat16>(const BFloat16*, int64_t);
template Stats chunk_stats<Float16>(const Float16*, int64_t);

}  // namespace pyquant::kernels
