// SPDX-License-Identifier: Apache-2.0
// Patches are gathered piece by piece into the rows that tiles take; depthwise sums run along the channels.
#include "kernels/convolution.h"

#include <algorithm>
#include <cmath>

#include "kernels/dot_parts.h"

namespace pyquant::kernels {
namespace {

void load_x(const Linear& problem, int64_t at, int64_t count, int32_t* to) {
  load_elements(problem.x.type, problem.x.data, problem.x.first + at, 1, count,
                static_cast<int32_t>(problem.x_zero), to);
}

void load_x(const Linear& problem, int64_t at, int64_t count, float* to) {
  load_elements(problem.x.type, problem.x.data, problem.x.first + at, 1, count, to);
}

template <class T>
void prepare_patch(const Linear& problem, const LinearPlan& plan, const Window& w, const Position& p,
                   int64_t m, const Prepared& to) {
  clear_row(problem, plan, m, to);
  for (int64_t k = 0; k < problem.depth; k += kPiece) {
    const int64_t end = std::min(k + kPiece, problem.depth);
    T piece[kPiece];
    for (int64_t at = k; at < end;) {
      const int64_t channel = at % w.channels, count = std::min(w.channels - channel, end - at);
      const int64_t from = p.under(w, at / w.channels);
      if (from < 0) {
        std::fill_n(piece + (at - k), count, T{0});
      } else {
        load_x(problem, from + channel, count, piece + (at - k));
      }
      at += count;
    }
    put_piece(plan, piece, k, end - k, m, to);
  }
}

/// x of `count` channels of y from `first` on, each as often as the multiplier says.
template <class T>
void load_channels(const Linear& problem, int64_t under, int64_t multiplier, int64_t first, int64_t count,
                   T* to) {
  if (multiplier == 1) return load_x(problem, under + first, count, to);
  T x[kUnitColumns];
  const int64_t channel = first / multiplier;
  load_x(problem, under + channel, (first + count - 1) / multiplier - channel + 1, x);
  for (int64_t j = 0; j < count; ++j) to[j] = x[(first + j) / multiplier - channel];
}

struct Filter {
  int32_t zero[kUnitColumns] = {};
  float scale[kUnitColumns] = {};
};

void add_products(const Linear& p, int64_t at, int64_t count, const Filter& filter, const int32_t* x,
                  double* sums) {
  int32_t w[kUnitColumns];
  load_elements(p.w.type, p.w.data, p.w.first + at, 1, count, 0, w);
  for (int64_t j = 0; j < count; ++j)
    sums[j] += static_cast<double>(x[j]) * static_cast<double>(w[j] - filter.zero[j]);
}

void add_products(const Linear& p, int64_t at, int64_t count, const Filter& filter, const float* x,
                  double* sums) {
  float w[kUnitColumns];
  if (is_grid(p.w.type)) {
    int32_t q[kUnitColumns];
    load_elements(p.w.type, p.w.data, p.w.first + at, 1, count, 0, q);
    for (int64_t j = 0; j < count; ++j) w[j] = static_cast<float>(q[j] - filter.zero[j]) * filter.scale[j];
  } else {
    load_elements(p.w.type, p.w.data, p.w.first + at, 1, count, w);
  }
  for (int64_t j = 0; j < count; ++j) {
    sums[j] = static_cast<double>(std::fma(x[j], w[j], static_cast<float>(sums[j])));
  }
}

template <class T>
void depthwise_channels(const Linear& problem, const Window& w, int64_t multiplier, int64_t begin,
                        int64_t end, int64_t first, int64_t count) {
  Filter filter;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t c = (first + j) * problem.w_scales.step;
    if (problem.w_scales.zero) filter.zero[j] = static_cast<int32_t>(problem.w_scales.zero[c]);
    if (problem.w_scales.scale) filter.scale[j] = problem.w_scales.scale[c];
  }
  Linear finished = problem;
  finished.w_scales.zero = nullptr;  // subtracted here
  for (int64_t at = begin; at < end; ++at) {
    const Position p(w, at);
    double sums[kUnitColumns] = {};
    for (int64_t tap = 0; tap < w.filter[0] * w.filter[1]; ++tap) {
      const int64_t from = p.under(w, tap);
      if (from < 0) continue;
      T x[kUnitColumns];
      load_channels(problem, from, multiplier, first, count, x);
      add_products(problem, tap * problem.columns + first, count, filter, x, sums);
    }
    if constexpr (std::is_same_v<T, int32_t>) {
      const double none = 0.0;
      finish_integers(finished, at, 1, first, count, sums, &none);
    } else {
      finish_floats(finished, at, 1, first, count, sums);
    }
  }
}

}  // namespace

void prepare_patches(const Linear& problem, const LinearPlan& plan, const Window& window, int64_t first,
                     int64_t begin, int64_t end, void* prepared) {
  const Prepared to = prepared_at(problem, plan, prepared);
  for (int64_t m = begin; m < end; ++m) {
    const Position p(window, first + m);
    if (plan.integers) {
      prepare_patch<int32_t>(problem, plan, window, p, m, to);
    } else {
      prepare_patch<float>(problem, plan, window, p, m, to);
    }
  }
}

void depthwise(const Linear& problem, const Window& window, int64_t multiplier, int64_t begin, int64_t end) {
  for (int64_t first = 0; first < problem.columns; first += kUnitColumns) {
    const int64_t count = std::min(kUnitColumns, problem.columns - first);
    if (is_grid(problem.x.type)) {
      depthwise_channels<int32_t>(problem, window, multiplier, begin, end, first, count);
    } else {
      depthwise_channels<float>(problem, window, multiplier, begin, end, first, count);
    }
  }
}

}  // namespace pyquant::kernels
