// SPDX-License-Identifier: Apache-2.0
// Reductions of real numbers with grids of their own: the terms of each result are collected, and added up
// exactly where that decides.
#include "kernels/reduce.h"

namespace pyquant::kernels {
namespace {

void finish(Reduction kind, const Product* products, int64_t n, const ChannelOutput& y, int64_t i) {
  if (kind == Reduction::sum) return y.round_sum(i, products, n);
  if (n == 0) return y.put(i, kind == Reduction::min ? y.rounder(i).hi : y.rounder(i).lo);
  if (kind == Reduction::mean) return y.round_sum(i, products, n, static_cast<double>(n));
  Product best = products[0];
  for (int64_t k = 1; k < n; ++k) {
    if (kind == Reduction::max ? products[k].a > best.a : products[k].a < best.a) best = products[k];
  }
  y.round_sum(i, &best, 1);
}

}  // namespace

void reduce_channels(Reduction kind, const Nest<1>& kept, const Nest<1>& reduced, const double* x,
                     Product* products, const ChannelOutput& y, int64_t begin, int64_t end) {
  int64_t result = begin;
  kept.for_each(begin, end, [&](const Nest<1>::Offsets& first) {
    int64_t n = 0;
    reduced.for_each(0, reduced.count(),
                     [&](const Nest<1>::Offsets& at) { products[n++] = {x[first[0] + at[0]], 1.0}; });
    finish(kind, products, n, y, result++);
  });
}

void cumsum_channels(const Cumsum& plan, const double* x, Product* products, const ChannelOutput& y,
                     int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const int64_t first = line / plan.inner * plan.size * plan.inner + line % plan.inner;
    for (int64_t i = 0; i < plan.size; ++i) {
      const int64_t at = first + (plan.reverse ? plan.size - 1 - i : i) * plan.inner;
      products[i] = {x[at], 1.0};
      y.round_sum(at, products, plan.exclusive ? i : i + 1);
    }
  }
}

}  // namespace pyquant::kernels
