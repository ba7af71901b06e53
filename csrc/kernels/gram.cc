// SPDX-License-Identifier: Apache-2.0
// The second moments of the columns of a matrix: the upper triangle panel by panel, and its mirror image.
#include <algorithm>

#include "kernels/convert.h"
#include "kernels/fma_tile.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

template <class T>
struct PackPanel {
  static void scalar(const T* x, int64_t rows, int64_t columns, int64_t begin, float* packed) {
    const int64_t width = std::min(kPanel, columns - begin);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t l = 0; l < kPanel; ++l) {
        packed[n * kPanel + l] = l < width ? load(x[n * columns + begin + l]) : 0.0f;
      }
    }
  }

  PYQUANT_INLINE static void vector(const T* x, int64_t rows, int64_t columns, int64_t begin, float* packed) {
    if (columns - begin < kPanel) return scalar(x, rows, columns, begin, packed);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t l = 0; l < kPanel; ++l) packed[n * kPanel + l] = load(x[n * columns + begin + l]);
    }
  }
};

/// The lines of n values: gram is large, and its rows are far from each other.
void prefetch(const float* row, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(row + i, 1);
  __builtin_prefetch(row + n - 1, 1);
}

}  // namespace

template <class T>
void pack_panel(const T* x, int64_t rows, int64_t columns, int64_t panel, float* packed) {
  dispatch<PackPanel<T>>(x, rows, columns, panel * kPanel, packed);
}

void gram_add(const float* a, int64_t a_panel, const float* b, int64_t b_panel, int64_t rows, int64_t columns,
              float* gram, bool mirror) {
  const int64_t first = a_panel * kPanel, left = b_panel * kPanel;
  const int64_t height = std::min(kPanel, columns - first), width = std::min(kPanel, columns - left);
  float* above = gram + first * columns + left;  // where the sums go, and where their mirror image does
  float* below = gram + left * columns + first;
  for (int64_t i = 0; i < height; ++i) prefetch(above + i * columns, width);
  for (int64_t l = 0; mirror && l < width; ++l) prefetch(below + l * columns, height);
  float tile[kPanel * kPanel];
  for (int64_t at = 0; at < rows; at += kGramRows) {
    const int64_t count = std::min(kGramRows, rows - at);
    for (int64_t i = 0; i < height; i += kStrip) {
      float* sums = tile + i * kPanel;
      std::fill_n(sums, kStrip * kPanel, 0.0f);
      dispatch<FmaTile>(a + at * kPanel + i, kPanel, b + at * kPanel, count, sums);
      for (int64_t s = i; s < std::min(i + kStrip, height); ++s) {
        for (int64_t l = a_panel == b_panel ? s : 0; l < width; ++l) {
          tile[s * kPanel + l] = above[s * columns + l] += tile[s * kPanel + l];
        }
      }
    }
  }
  if (!mirror || rows == 0) return;
  for (int64_t l = 0; l < width; ++l) {
    for (int64_t i = 0; i < (a_panel == b_panel ? l : height); ++i)
      below[l * columns + i] = tile[i * kPanel + l];
  }
}

template void pack_panel<float>(const float*, int64_t, int64_t, int64_t, float*);
template void pack_panel<BFloat16>(const BFloat16*, int64_t, int64_t, int64_t, float*);
template void pack_panel<Float16>(const Float16*, int64_t, int64_t, int64_t, float*);

}  // namespace pyquant::kernels
