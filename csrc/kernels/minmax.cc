// SPDX-License-Identifier: Apache-2.0
// Smallest and largest finite value, and how many values are not finite, in one pass.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/convert.h"
#include "kernels/fma_tile.h"
#include "kernels/half.h"
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

// Rows that are short (groups of a weight), four at a time: what is kept of each is one register, and four
// rows are reduced together, so that no lane goes through memory.
constexpr int kFour = 4;
constexpr int64_t kShort = 256;

using Four = float __attribute__((vector_size(kFour * sizeof(float))));
using FourBits = int32_t __attribute__((vector_size(kFour * sizeof(int32_t))));

#if defined(__clang__)
#define PYQUANT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PYQUANT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourBits{__VA_ARGS__})
#endif

PYQUANT_INLINE void load_four(const float* x, Four& to) { std::memcpy(&to, x, sizeof to); }

PYQUANT_INLINE void load_four(const BFloat16* x, Four& to) {
  using Words = uint16_t __attribute__((vector_size(kFour * sizeof(uint16_t))));
  using Wide = uint32_t __attribute__((vector_size(kFour * sizeof(uint32_t))));
  Words words;
  std::memcpy(&words, x, sizeof words);
  const Wide wide = __builtin_convertvector(words, Wide) << 16;
  std::memcpy(&to, &wide, sizeof to);
}

PYQUANT_INLINE void load_four(const Float16* x, Four& to) {
  for (int l = 0; l < kFour; ++l) to[l] = load(x[l]);
}

struct FourRows {
  Four lo[kFour], hi[kFour];  // of each row, over every fourth value
  FourBits magnitude;         // of all rows

  PYQUANT_INLINE void add(int row, const Four& v) {
    FourBits m;
    std::memcpy(&m, &v, sizeof m);
    m &= 0x7fffffff;
    lo[row] = v < lo[row] ? v : lo[row];
    hi[row] = v > hi[row] ? v : hi[row];
    magnitude = m > magnitude ? m : magnitude;
  }

  PYQUANT_INLINE bool finite() const {
    int32_t most = 0;
    for (int l = 0; l < kFour; ++l) most = std::max<int32_t>(most, magnitude[l]);
    return most < static_cast<int32_t>(kInfBits);
  }

  /// The least of row r in lane r, and the greatest.
  PYQUANT_INLINE void reduce(Four& low, Four& high) const {
    Four a, b, c, d;
    a = PYQUANT_SHUFFLE(lo[0], lo[1], 0, 4, 1, 5), b = PYQUANT_SHUFFLE(lo[0], lo[1], 2, 6, 3, 7);
    c = PYQUANT_SHUFFLE(lo[2], lo[3], 0, 4, 1, 5), d = PYQUANT_SHUFFLE(lo[2], lo[3], 2, 6, 3, 7);
    a = a < b ? a : b, c = c < d ? c : d;
    b = PYQUANT_SHUFFLE(a, c, 0, 1, 4, 5), d = PYQUANT_SHUFFLE(a, c, 2, 3, 6, 7);
    low = b < d ? b : d;
    a = PYQUANT_SHUFFLE(hi[0], hi[1], 0, 4, 1, 5), b = PYQUANT_SHUFFLE(hi[0], hi[1], 2, 6, 3, 7);
    c = PYQUANT_SHUFFLE(hi[2], hi[3], 0, 4, 1, 5), d = PYQUANT_SHUFFLE(hi[2], hi[3], 2, 6, 3, 7);
    a = a > b ? a : b, c = c > d ? c : d;
    b = PYQUANT_SHUFFLE(a, c, 0, 1, 4, 5), d = PYQUANT_SHUFFLE(a, c, 2, 3, 6, 7);
    high = b > d ? b : d;
  }
};

// Four rows of n values each, kFour <= n <= kShort, one after the other; the last values of a row may be
// looked at twice. False where some value is not finite, and low and high are any.
template <class T>
PYQUANT_INLINE bool four_rows(const T* x, int64_t n, Four& low, Four& high) {
  FourRows rows;
  Four v;
  rows.magnitude = FourBits{};
  PYQUANT_UNROLL for (int r = 0; r < kFour; ++r) {
    load_four(x + r * n, v);
    rows.lo[r] = rows.hi[r] = v;
    rows.add(r, v);
  }
  for (int64_t at = kFour; at < n; at += kFour) {
    const int64_t from = std::min(at, n - kFour);
    PYQUANT_UNROLL for (int r = 0; r < kFour; ++r) {
      load_four(x + r * n + from, v);
      rows.add(r, v);
    }
  }
  rows.reduce(low, high);
  return rows.finite();
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
    const bool is_short = kVector && map->strides[2] == 0 && n == map->dims[2] && n >= kFour && n <= kShort;
    int64_t nonfinite = 0;
    for (int64_t i = box->begin[0]; i < box->end[0]; ++i) {
      int64_t j = box->begin[1];
      for (; is_short && j + kFour <= box->end[1]; j += kFour) {
        const int64_t s = i * map->strides[0] + j * map->strides[1];
        nonfinite += short_rows(x + (i * map->dims[1] + j) * n, n, map->strides[1], lo + s, hi + s);
      }
      for (; j < box->end[1]; ++j) {
        const T* row = x + (i * map->dims[1] + j) * map->dims[2] + box->begin[2];
        const int64_t s = i * map->strides[0] + j * map->strides[1] + box->begin[2] * map->strides[2];
        if (map->strides[2] == 0) {
          const Extent e = kVector ? run_vector(row, n) : run_scalar(row, n);
          nonfinite += take(e, lo[s], hi[s]);
        } else {
          nonfinite += columns(row, n, lo + s, hi + s);
        }
      }
    }
    return nonfinite;
  }

  PYQUANT_INLINE static int64_t take(const Extent& e, float& lo, float& hi) {
    lo = e.lo < lo ? e.lo : lo;
    hi = e.hi > hi ? e.hi : hi;
    return e.nonfinite;
  }

  // kFour rows; the scales of neighbours are `stride` apart.
  PYQUANT_INLINE static int64_t short_rows(const T* x, int64_t n, int64_t stride, float* lo, float* hi) {
    Four low, high;
    int64_t nonfinite = 0;
    if (four_rows(x, n, low, high)) {
      for (int r = 0; r < kFour; ++r)
        take({low[r] + 0.0f, high[r] + 0.0f, 0}, lo[r * stride], hi[r * stride]);
    } else {
      for (int r = 0; r < kFour; ++r)
        nonfinite += take(run_scalar(x + r * n, n), lo[r * stride], hi[r * stride]);
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

// A block of rows, or of one row, at a time as floats.
int64_t minmax_halves(const Float16* x, const ScaleMap& map, const Box& box, float* lo, float* hi) {
  const int64_t n = box.end[2] - box.begin[2];
  if (n <= 0) return 0;
  const int64_t many = n == map.dims[2] ? std::max<int64_t>(1, kHalves / n) : 1;
  int64_t nonfinite = 0;
  for (int64_t i = box.begin[0]; i < box.end[0]; ++i) {
    for (int64_t j = box.begin[1]; j < box.end[1]; j += many) {
      const int64_t rows = std::min(many, box.end[1] - j);
      const int64_t begin = (i * map.dims[1] + j) * map.dims[2] + box.begin[2];
      const int64_t s = i * map.strides[0] + j * map.strides[1] + box.begin[2] * map.strides[2];
      for_blocks(x, begin, begin + rows * n, [&](const float* values, int64_t at, int64_t length) {
        const ScaleMap part{{1, rows, length / rows}, {0, map.strides[1], map.strides[2]}};
        const Box all{{0, 0, 0}, {1, rows, length / rows}};
        const int64_t first = s + (at - begin) * map.strides[2];
        nonfinite += dispatch<MinMax<float>>(values, &part, &all, lo + first, hi + first);
      });
    }
  }
  return nonfinite;
}

}  // namespace

template <class T>
int64_t minmax(const T* x, const ScaleMap& map, const Box& box, float* lo, float* hi) {
  if constexpr (std::is_same_v<T, Float16>) {
    if (has_fast_halves()) return minmax_halves(x, map, box, lo, hi);
  }
  return dispatch<MinMax<T>>(x, &map, &box, lo, hi);
}

template int64_t minmax<float>(const float*, const ScaleMap&, const Box&, float*, float*);
template int64_t minmax<BFloat16>(const BFloat16*, const ScaleMap&, const Box&, float*, float*);
template int64_t minmax<Float16>(const Float16*, const ScaleMap&, const Box&, float*, float*);

}  // namespace pyquant::kernels
