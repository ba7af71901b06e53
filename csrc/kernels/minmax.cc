// SPDX-License-Identifier: Apache-2.0
// Smallest and largest finite value, and how many values are not finite, in one pass.
#include <algorithm>
#include <limits>

#include "kernels/convert.h"
#include "kernels/simd.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kWide = 64;
constexpr int kNarrow = 16;
constexpr uint32_t kInfBits = 0x7f800000u;

struct Extent {
  float lo = kInf;
  float hi = -kInf;
  int64_t nonfinite = 0;
};

PYQUANT_INLINE bool is_finite(float v) { return (bits_of(v) & 0x7fffffffu) < kInfBits; }

PYQUANT_INLINE void widen(float& lo, float& hi, float v) {
  lo = v < lo ? v : lo;
  hi = v > hi ? v : hi;
}

// The definition, one value after the other. Adding +0 makes +0 of -0.
template <class T>
PYQUANT_INLINE Extent run_scalar(const T* x, int64_t n) {
  Extent e;
  for (int64_t i = 0; i < n; ++i) {
    const float v = load(x[i]) + 0.0f;
    if (is_finite(v)) {
      widen(e.lo, e.hi, v);
    } else {
      ++e.nonfinite;
    }
  }
  return e;
}

PYQUANT_INLINE void join(Extent& all, const Extent& part) {
  all.lo = part.lo < all.lo ? part.lo : all.lo;
  all.hi = part.hi > all.hi ? part.hi : all.hi;
  all.nonfinite += part.nonfinite;
}

// n is a multiple of kLanes. Values count as finite while the largest magnitude is kept too; a block that
// has NaN or Inf is computed again.
template <int kLanes, class T>
PYQUANT_INLINE Extent block(const T* x, int64_t n) {
  float lo[kLanes], hi[kLanes];
  int32_t magnitude[kLanes];
  for (int l = 0; l < kLanes; ++l) lo[l] = kInf, hi[l] = -kInf, magnitude[l] = 0;
  for (int64_t at = 0; at < n; at += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float v = load(x[at + l]);
      widen(lo[l], hi[l], v);
      const int32_t m = static_cast<int32_t>(bits_of(v) & 0x7fffffffu);
      magnitude[l] = m > magnitude[l] ? m : magnitude[l];
    }
  }
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int l = 0; l < step; ++l) {
      lo[l] = lo[l + step] < lo[l] ? lo[l + step] : lo[l];
      hi[l] = hi[l + step] > hi[l] ? hi[l + step] : hi[l];
      magnitude[l] = magnitude[l + step] > magnitude[l] ? magnitude[l + step] : magnitude[l];
    }
  }
  if (magnitude[0] >= static_cast<int32_t>(kInfBits)) return run_scalar(x, n);
  return {lo[0] + 0.0f, hi[0] + 0.0f, 0};
}

template <class T>
PYQUANT_INLINE Extent run_vector(const T* x, int64_t n) {
  constexpr int64_t kBlock = 4096;
  Extent all;
  int64_t i = 0;
  for (int64_t m; n - i >= 4 * kWide; i += m) {
    m = std::min(kBlock, (n - i) / kWide * kWide);
    join(all, block<kWide>(x + i, m));
  }
  if (n - i >= kNarrow) {  // the rest of a long run, or all of a group of 32
    const int64_t m = (n - i) / kNarrow * kNarrow;
    join(all, block<kNarrow>(x + i, m));
    i += m;
  }
  join(all, run_scalar(x + i, n - i));
  return all;
}

template <class T>
struct MinMax {
  static int64_t scalar(const T* x, const ScaleMap* map, const Box* box, float* lo, float* hi) {
    return walk<false>(x, map, box, lo, hi);
  }

  PYQUANT_INLINE static int64_t vector(const T* x, const ScaleMap* map, const Box* box, float* lo,
                                       float* hi) {
    return walk<true>(x, map, box, lo, hi);
  }

 private:
  template <bool kVector>
  PYQUANT_INLINE static int64_t walk(const T* x, const ScaleMap* map, const Box* box, float* lo, float* hi) {
    const int64_t n = box->end[2] - box->begin[2];
    int64_t nonfinite = 0;
    for (int64_t i = box->begin[0]; i < box->end[0]; ++i) {
      for (int64_t j = box->begin[1]; j < box->end[1]; ++j) {
        const T* row = x + (i * map->dims[1] + j) * map->dims[2] + box->begin[2];
        const int64_t s = i * map->strides[0] + j * map->strides[1] + box->begin[2] * map->strides[2];
        if (map->strides[2] == 0) {
          const Extent e = kVector ? run_vector(row, n) : run_scalar(row, n);
          lo[s] = e.lo < lo[s] ? e.lo : lo[s];
          hi[s] = e.hi > hi[s] ? e.hi : hi[s];
          nonfinite += e.nonfinite;
        } else {
          nonfinite += columns(row, n, lo + s, hi + s);
        }
      }
    }
    return nonfinite;
  }

  PYQUANT_INLINE static int64_t columns(const T* __restrict x, int64_t n, float* __restrict lo,
                                        float* __restrict hi) {
    int64_t nonfinite = 0;
    for (int64_t k = 0; k < n; ++k) {
      const float v = load(x[k]) + 0.0f;
      const bool finite = is_finite(v);
      const float low = finite ? v : kInf, high = finite ? v : -kInf;
      lo[k] = low < lo[k] ? low : lo[k];
      hi[k] = high > hi[k] ? high : hi[k];
      nonfinite += !finite;
    }
    return nonfinite;
  }
};

}  // namespace

template <class T>
int64_t minmax(const T* x, const ScaleMap& map, const Box& box, float* lo, float* hi) {
  return dispatch<MinMax<T>>(x, &map, &box, lo, hi);
}

template int64_t minmax<float>(const float*, const ScaleMap&, const Box&, float*, float*);
template int64_t minmax<BFloat16>(const BFloat16*, const ScaleMap&, const Box&, float*, float*);
template int64_t minmax<Float16>(const Float16*, const ScaleMap&, const Box&, float*, float*);

}  // namespace pyquant::kernels
