// SPDX-License-Identifier: Apache-2.0
// Sums of products to outputs: scale, bias and one rounding for integers; bias, clamp and float32 for floats.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/convert.h"
#include "kernels/dot_parts.h"
#include "kernels/exact.h"
#include "kernels/real.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

/// What the columns of a unit have in common for all rows.
struct Columns {
  double zero[kUnitColumns] = {};    // of w
  double factor[kUnitColumns] = {};  // x_scale * w_scale / y_scale
  double offset[kUnitColumns] = {};  // bias * bias_scale / y_scale
};

/// rounded[j] = sum over y's scale, an integer of [least, most]; whether one of them may be on the wrong side
/// of a step.
struct Round {
  static bool scalar(const double* sums, double x_sum, const Columns* c, double least, double most,
                     double* rounded) {
    return vector(sums, x_sum, c, least, most, rounded);
  }
  PYQUANT_INLINE static bool vector(const double* __restrict sums, double x_sum, const Columns* __restrict c,
                                    double least, double most, double* __restrict rounded) {
    int64_t near = 0;
    for (int j = 0; j < kUnitColumns; ++j) {
      const double product = (sums[j] - c->zero[j] * x_sum) * c->factor[j];
      const double v = product + c->offset[j];
      near |= near_tie(v, std::fabs(product) + std::fabs(c->offset[j])) ? 1 : 0;
      rounded[j] = nearest(v, least, most);
    }
    return near != 0;
  }
};

int64_t bias_at(const Linear& p, int64_t n) {
  if (!p.bias) return 0;
  if (p.bias_type == Elements::int32) return static_cast<const int32_t*>(p.bias)[n];
  int64_t bias;  // in a mapped file it may lie at a multiple of 4
  std::memcpy(&bias, static_cast<const uint8_t*>(p.bias) + n * 8, sizeof bias);
  return bias;
}

double scale_at(const RowScales& s, int64_t n) { return static_cast<double>(s.scale[n * s.step]); }
double zero_at(const RowScales& s, int64_t n) {
  return s.zero ? static_cast<double>(s.zero[n * s.step]) : 0.0;
}

/// The exact rounding of column `n` where its double may be on the wrong side.
double round_column(const Linear& p, int64_t n, double sum) {
  const double factor = static_cast<double>(p.x_scale) * scale_at(p.w_scales, n);
  const int64_t bias = bias_at(p, n), low = bias & 0xffffffff;
  const double bias_scale = p.bias ? scale_at(p.bias_scales, n) : 0.0;
  const int64_t q = round_exact(
      {{sum, factor}, {static_cast<double>(bias - low), bias_scale}, {static_cast<double>(low), bias_scale}},
      static_cast<double>(p.y.scale), 1.0, p.y.least - p.y.zero, p.y.most - p.y.zero);
  return static_cast<double>(q);
}

template <class T>
struct Store {
  static void scalar(const double* rounded, int64_t columns, int32_t zero, T* y) {
    vector(rounded, columns, zero, y);
  }
  PYQUANT_INLINE static void vector(const double* __restrict rounded, int64_t columns, int32_t zero,
                                    T* __restrict y) {
    for (int64_t j = 0; j < columns; ++j) y[j] = static_cast<T>(static_cast<int32_t>(rounded[j]) + zero);
  }
};

template <class T>
void store_row(const double* rounded, int64_t columns, int64_t zero, T* y) {
  dispatch<Store<T>>(rounded, columns, static_cast<int32_t>(zero), y);
}

float bias_of(const Linear& p, int64_t n) {
  if (!p.bias) return 0.0f;
  switch (p.bias_type) {
    case Elements::float16:
      return load(static_cast<const Float16*>(p.bias)[n]);
    case Elements::bfloat16:
      return load(static_cast<const BFloat16*>(p.bias)[n]);
    default:
      return static_cast<const float*>(p.bias)[n];
  }
}

float activated(double sum, const Output& y) {
  const auto v = static_cast<float>(y.tanh ? real_tanh(sum) : sum);
  return v < y.from ? y.from : v > y.to ? y.to : v;
}

}  // namespace

void finish_integers(const Linear& p, int64_t row, int64_t rows, int64_t first, int64_t columns,
                     const double* sums, const double* x_sums) {
  Columns c;
  const double per_step = 1.0 / static_cast<double>(p.y.scale),
               x_scale = static_cast<double>(p.x_scale) * per_step;
  for (int64_t j = 0; j < columns; ++j) {
    c.zero[j] = zero_at(p.w_scales, first + j);
    c.factor[j] = x_scale * scale_at(p.w_scales, first + j);
  }
  for (int64_t j = 0; p.bias && j < columns; ++j) {
    c.offset[j] =
        static_cast<double>(bias_at(p, first + j)) * (scale_at(p.bias_scales, first + j) * per_step);
  }
  const auto least = static_cast<double>(p.y.least - p.y.zero),
             most = static_cast<double>(p.y.most - p.y.zero);
  for (int64_t i = 0; i < rows; ++i, sums += kUnitColumns) {
    double rounded[kUnitColumns];
    if (p.y.tanh) {
      for (int64_t j = 0; j < columns; ++j) {
        const double v = (sums[j] - c.zero[j] * x_sums[i]) * c.factor[j] + c.offset[j];
        const auto scale = static_cast<double>(p.y.scale);
        rounded[j] = nearest(real_tanh(v * scale) / scale, least, most);
      }
    } else if (dispatch<Round>(sums, x_sums[i], static_cast<const Columns*>(&c), least, most,
                               static_cast<double*>(rounded))) {
      for (int64_t j = 0; j < columns; ++j) {
        const double sum = sums[j] - c.zero[j] * x_sums[i], product = sum * c.factor[j];
        const double magnitude = std::fabs(product) + std::fabs(c.offset[j]);
        if (near_tie(product + c.offset[j], magnitude)) rounded[j] = round_column(p, first + j, sum);
      }
    }
    const int64_t at = p.y.first + (row + i) * p.y.row_step + first;
    switch (p.y.type) {
      case Elements::int8:
        store_row(rounded, columns, p.y.zero, static_cast<int8_t*>(p.y.data) + at);
        break;
      case Elements::uint8:
        store_row(rounded, columns, p.y.zero, static_cast<uint8_t*>(p.y.data) + at);
        break;
      default:
        store_row(rounded, columns, p.y.zero, static_cast<int16_t*>(p.y.data) + at);
    }
  }
}

void finish_floats(const Linear& p, int64_t row, int64_t rows, int64_t first, int64_t columns,
                   const double* sums) {
  for (int64_t i = 0; i < rows; ++i, sums += kUnitColumns) {
    const int64_t at = p.y.first + (row + i) * p.y.row_step + first;
    for (int64_t j = 0; j < columns; ++j) {
      const float v = activated(p.bias ? sums[j] + static_cast<double>(bias_of(p, first + j)) : sums[j], p.y);
      switch (p.y.type) {
        case Elements::float16:
          store_any(v, static_cast<Float16*>(p.y.data)[at + j]);
          break;
        case Elements::bfloat16:
          store_any(v, static_cast<BFloat16*>(p.y.data)[at + j]);
          break;
        default:
          static_cast<float*>(p.y.data)[at + j] = v;
      }
    }
  }
}

}  // namespace pyquant::kernels
