// SPDX-License-Identifier: Apache-2.0
// GPTQ's loop over columns, for a panel of rows at a time: the rows are the lanes of the vectors.
//
// Within a block of columns a strip first takes the errors of the strips before it; after the block, all
// columns to its right take the errors of the block. Each weight so receives the errors in the order of the
// columns, one fused multiply-add each, as if column after column had been written through the whole row.
#include <algorithm>
#include <cmath>

#include "kernels/fma_tile.h"
#include "kernels/pointwise.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

/// The scales of the rows of a panel.
struct Lanes {
  float scale[kPanel];
  int32_t zero_point[kPanel];
  float lo[kPanel], hi[kPanel];
};

void load_lanes(const Gptq& problem, int64_t panel, int64_t group, Lanes& lanes) {
  for (int64_t l = 0; l < kPanel; ++l) {
    const int64_t row = panel * kPanel + l;
    const int64_t at = row * problem.scale_step + group;
    const bool there = row < problem.rows;
    const RoundParams p = RoundParams::make(
        {there ? problem.scale[at] : 1.0f, there ? problem.zero_point[at] : problem.grid.qmin}, problem.grid);
    lanes.scale[l] = p.q.scale;
    lanes.zero_point[l] = p.q.zero_point;
    lanes.lo[l] = p.lo;
    lanes.hi[l] = p.hi;
  }
}

/// One column of a panel: its integers, and its errors with the sign turned.
struct SolveColumn {
  static void scalar(const float* w, const Lanes* lanes, Grid grid, float diagonal, int32_t* q, float* errors,
                     double* loss) {
    for (int64_t l = 0; l < kPanel; ++l) {
      const ScaleZeroPoint p{lanes->scale[l], lanes->zero_point[l]};
      q[l] = quantize_value(w[l], p, grid);
      add_error((w[l] - dequantize_value(q[l], p)) / diagonal, errors[l], loss[l]);
    }
  }

  PYQUANT_INLINE static void vector(const float* w, const Lanes* lanes, Grid, float diagonal, int32_t* q,
                                    float* errors, double* loss) {
    for (int64_t l = 0; l < kPanel; ++l) {
      const int32_t steps = round_small(clamp_number(w[l] / lanes->scale[l], lanes->lo[l], lanes->hi[l]));
      q[l] = steps + lanes->zero_point[l];
      errors[l] = (w[l] - static_cast<float>(steps) * lanes->scale[l]) / diagonal;
    }
    for (int64_t l = 0; l < kPanel; ++l) add_error(errors[l], errors[l], loss[l]);
  }

 private:
  PYQUANT_INLINE static void add_error(float error, float& out, double& loss) {
    out = -error;
    loss += static_cast<double>(error) * static_cast<double>(error);
  }
};

/// w[l] = fma(factor, errors[l], w[l]): one error within a strip.
struct AddError {
  static void scalar(float factor, const float* errors, float* w) {
    for (int64_t l = 0; l < kPanel; ++l) w[l] = std::fma(factor, errors[l], w[l]);
  }
  PYQUANT_INLINE static void vector(float factor, const float* errors, float* w) {
    for (int64_t l = 0; l < kPanel; ++l) w[l] = __builtin_fmaf(factor, errors[l], w[l]);
  }
};

}  // namespace

void gptq_pack_rows(const float* w, int64_t rows, int64_t columns, int64_t panel, float* packed) {
  const int64_t height = std::min(kPanel, rows - panel * kPanel), padded = strips_of(columns) * kStrip;
  constexpr int64_t kAtOnce = 16;  // a line of each row
  for (int64_t begin = 0; begin < padded; begin += kAtOnce) {
    for (int64_t l = 0; l < kPanel; ++l) {
      const float* row = w + (panel * kPanel + l) * columns;
      for (int64_t c = begin; c < std::min(begin + kAtOnce, padded); ++c) {
        packed[c * kPanel + l] = l < height && c < columns ? row[c] : 0.0f;
      }
    }
  }
}

void gptq_pack_factor(const Gptq& problem, int64_t first, int64_t begin, int64_t end, float* packed) {
  const int64_t columns = problem.columns, rows = std::min(kGptqBlock, columns - first);
  for (int64_t j = 0; j < rows; ++j) {
    const float* row = problem.factor + (first + j) * columns;
    for (int64_t strip = begin; strip < end; ++strip) {
      float* to = packed + (strip * kGptqBlock + j) * kStrip;
      for (int64_t i = 0; i < kStrip; ++i) {
        const int64_t c = first + strip * kStrip + i;
        to[i] = c < columns ? row[c] : 0.0f;
      }
    }
  }
}

void gptq_solve_block(const Gptq& problem, int64_t first, int64_t panel, const float* factor, float* packed,
                      float* errors) {
  const int64_t columns = problem.columns, rows = std::min(kPanel, problem.rows - panel * kPanel);
  const int64_t end = std::min(first + kGptqBlock, columns);
  double loss[kPanel] = {};
  std::copy_n(problem.loss + panel * kPanel, rows, loss);
  Lanes lanes;
  int64_t group = -1;
  for (int64_t begin = first; begin < end; begin += kStrip) {
    const float* strip = factor + (begin - first) * kGptqBlock;
    const int64_t width = std::min(kStrip, end - begin);
    dispatch<FmaTile>(strip, kStrip, static_cast<const float*>(errors), begin - first,
                      packed + begin * kPanel);
    int32_t q[kStrip * kPanel];
    for (int64_t i = 0; i < width; ++i) {
      const int64_t c = begin + i;
      float* w = packed + c * kPanel;
      for (int64_t j = 0; j < i; ++j) {
        dispatch<AddError>(strip[(begin - first + j) * kStrip + i],
                           static_cast<const float*>(errors + (begin - first + j) * kPanel), w);
      }
      if (c / problem.group != group) load_lanes(problem, panel, group = c / problem.group, lanes);
      dispatch<SolveColumn>(static_cast<const float*>(w), static_cast<const Lanes*>(&lanes), problem.grid,
                            strip[(c - first) * kStrip + i], q + i * kPanel, errors + (c - first) * kPanel,
                            static_cast<double*>(loss));
    }
    for (int64_t l = 0; l < rows; ++l) {
      int32_t* to = problem.integers + (panel * kPanel + l) * columns + begin;
      for (int64_t i = 0; i < width; ++i) to[i] = q[i * kPanel + l];
    }
  }
  std::copy_n(loss, rows, problem.loss + panel * kPanel);
  for (int64_t begin = end; begin < columns; begin += kStrip) {
    dispatch<FmaTile>(factor + (begin - first) * kGptqBlock, kStrip, static_cast<const float*>(errors),
                      end - first, packed + begin * kPanel);
  }
}

}  // namespace pyquant::kernels
