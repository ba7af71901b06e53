// SPDX-License-Identifier: Apache-2.0
// mse_range: for each scale of a weight, the range whose grid has the least square error.
#include <vector>

#include "torch/widen.h"

namespace pyquant::torch_ops {
namespace {

// x with the elements of a scale side by side, scale after scale; in the order of the scales.
Tensor by_scale(const Tensor& x, const kernels::ScaleMap& map) {
  const auto& d = map.dims;
  if (map.strides[2] == 0 && (map.strides[1] == 0 || d[0] == 1)) return dense(x);
  const Tensor view = torch::stable::view(dense(x), {d[0], d[1], d[2]});
  return torch::stable::contiguous(map.strides[2] == 0 ? torch::stable::transpose(view, 0, 1)
                                                       : torch::stable::transpose(view, 1, 2));
}

struct Best {
  kernels::Range range;

  Best(float lo, float hi, const double* errors) : range(kernels::candidate_range(lo, hi, 0)) {
    int best = 0;
    for (int c = 1; c < kernels::kCandidates; ++c) {
      if (errors[c] < errors[best]) best = c;
    }
    range = kernels::candidate_range(lo, hi, best);
  }
};

std::tuple<Tensor, Tensor> mse_range(const Tensor& x_, Axis axis, int64_t group, int64_t qmin, int64_t qmax,
                                     bool symmetric) {
  const char* op = "mse_range";
  check_cpu(op, "x", x_);
  check_search_grid(op, qmin, qmax, symmetric);
  const Granularity g = granularity(op, x_, axis, group);
  const Grid grid{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
  Tensor lo = empty_scales(x_, g), hi = empty_scales(x_, g);
  const int64_t runs = lo.numel();
  float *low = out<float>(lo), *high = out<float>(hi);
  std::fill(low, low + runs, kInf);
  std::fill(high, high + runs, -kInf);
  const int64_t n = x_.numel();
  if (n == 0) {
    with_float(op, x_, [](auto) { return 0; });
    return {lo, hi};
  }
  const Tensor x = by_scale(x_, g.map);
  const int64_t length = n / runs, chunks = (length + kernels::kErrorChunk - 1) / kernels::kErrorChunk;
  with_float(op, x, [&](auto type) {
    using T = decltype(type);
    const T* from = in<T>(x);
    widen_range(from, kernels::ScaleMap::per_channel(1, runs, length), low, high);
    if (chunks == 1) {
      parallel(runs, std::max<int64_t>(1, kGrain / kernels::kCandidates / length),
               [&](int64_t begin, int64_t end) {
                 double errors[kernels::kCandidates];
                 for (int64_t r = begin; r < end; ++r) {
                   if (low[r] > high[r]) continue;
                   kernels::candidate_errors(from + r * length, length, low[r], high[r], grid, symmetric,
                                             errors);
                   const Best best(low[r], high[r], errors);
                   low[r] = best.range.lo;
                   high[r] = best.range.hi;
                 }
               });
      return 0;
    }
    std::vector<double> parts(chunks * kernels::kCandidates);
    for (int64_t r = 0; r < runs; ++r) {
      if (low[r] > high[r]) continue;
      const T* run = from + r * length;
      parallel(chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          const int64_t at = c * kernels::kErrorChunk;
          kernels::candidate_errors(run + at, std::min(kernels::kErrorChunk, length - at), low[r], high[r],
                                    grid, symmetric, parts.data() + c * kernels::kCandidates);
        }
      });
      double errors[kernels::kCandidates] = {};
      for (size_t i = 0; i < parts.size(); ++i) errors[i % kernels::kCandidates] += parts[i];
      const Best best(low[r], high[r], errors);
      low[r] = best.range.lo;
      high[r] = best.range.hi;
    }
    return 0;
  });
  return {lo, hi};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("mse_range(Tensor x, int? axis, int group, int qmin, int qmax, bool symmetric) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) { m.impl("mse_range", TORCH_BOX(&mse_range)); }

}  // namespace pyquant::torch_ops
