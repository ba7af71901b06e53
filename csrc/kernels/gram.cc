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

}  // namespace

template <class T>
void pack_panel(const T* x, int64_t rows, int64_t columns, int64_t panel, float* packed) {
  dispatch<PackPanel<T>>(x, rows, columns, panel * kPanel, packed);
}

void gram_add(const float* a, int64_t a_panel, const float* b, int64_t b_panel, int64_t rows, int64_t columns,
              float* gram) {
  const int64_t first = a_panel * kPanel, left = b_panel * kPanel;
  const int64_t height = std::min(kPanel, columns - first), width = std::min(kPanel, columns - left);
  for (int64_t at = 0; at < rows; at += kGramRows) {
    const int64_t count = std::min(kGramRows, rows - at);
    for (int64_t i = 0; i < height; i += kStrip) {
      float sums[kStrip * kPanel] = {};
      dispatch<FmaTile>(a + at * kPanel + i, kPanel, b + at * kPanel, count, static_cast<float*>(sums));
      for (int64_t s = 0; s < std::min(kStrip, height - i); ++s) {
        float* row = gram + (first + i + s) * columns + left;
        for (int64_t l = a_panel == b_panel ? i + s : 0; l < width; ++l) row[l] += sums[s * kPanel + l];
      }
    }
  }
}

void gram_mirror(int64_t a_panel, int64_t b_panel, int64_t columns, float* gram) {
  const int64_t bottom = std::min((a_panel + 1) * kPanel, columns);
  const int64_t right = std::min((b_panel + 1) * kPanel, columns);
  for (int64_t j = b_panel * kPanel; j < right; ++j) {
    for (int64_t i = a_panel * kPanel; i < std::min(bottom, j); ++i) {
      gram[j * columns + i] = gram[i * columns + j];
    }
  }
}

template void pack_panel<float>(const float*, int64_t, int64_t, int64_t, float*);
template void pack_panel<BFloat16>(const BFloat16*, int64_t, int64_t, int64_t, float*);
template void pack_panel<Float16>(const Float16*, int64_t, int64_t, int64_t, float*);

}  // namespace pyquant::kernels
