// SPDX-License-Identifier: Apache-2.0
// mse_range, weighted_mse_range: for each scale of a weight, the range whose grid has the least square error.
#include <cmath>
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

// The importances times the power of two that brings the largest below 1, so that no error overflows.
std::vector<float> scaled(const char* op, const Tensor& importance_) {
  const Tensor importance = dense(importance_);
  const float* from = in<float>(importance);
  std::vector<float> to(from, from + importance.numel());
  float most = 0;
  for (size_t i = 0; i < to.size(); ++i) {
    PYQUANT_CHECK(to[i] >= 0.0f && std::isfinite(to[i]), op, ": importance number ", i, " is ", to[i],
                  "; every importance must be finite and not negative");
    most = std::max(most, to[i]);
  }
  int exponent = 0;
  std::frexp(most, &exponent);
  for (float& v : to) v = std::ldexp(v, -exponent);
  return to;
}

std::tuple<Tensor, Tensor> weighted_mse_range(const Tensor& x_, const Tensor& importance_, Axis axis,
                                              int64_t group, int64_t qmin, int64_t qmax, bool symmetric) {
  const char* op = "weighted_mse_range";
  check_cpu(op, "x", x_);
  check_search_grid(op, qmin, qmax, symmetric);
  PYQUANT_CHECK(x_.dim() == 2, op, ": x has shape ", shape_text(x_), "; expected (rows, columns)");
  check_dtype(op, "importance", importance_, ScalarType::Float);
  PYQUANT_CHECK(importance_.dim() == 1 && importance_.size(0) == x_.size(1), op, ": importance has shape ",
                shape_text(importance_), "; x of shape ", shape_text(x_), " needs (", x_.size(1), ",)");
  const Granularity g = granularity(op, x_, axis, group);
  PYQUANT_CHECK(!axis || (g.axis == 0) == (group == 0), op, ": axis is ", axis.value_or(0), " and group is ",
                group, "; expected axis None, axis 0 with group 0, or axis 1 with a group");
  const std::vector<float> importance = scaled(op, importance_);
  const Grid grid{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
  Tensor lo = empty_scales(x_, g), hi = empty_scales(x_, g);
  const int64_t scales = lo.numel();
  float *low = out<float>(lo), *high = out<float>(hi);
  std::fill(low, low + scales, kInf);
  std::fill(high, high + scales, -kInf);
  const Tensor x = dense(x_);
  with_float(op, x, [&](auto type) {
    using T = decltype(type);
    if (x.numel() == 0) return 0;
    widen_range(in<T>(x), g.map, low, high);
    const int64_t columns = x.size(1), length = group == 0 ? columns : group, runs = x.numel() / length;
    const auto errors_of = [&](int64_t run, float lo_, float hi_, double* errors) {
      const T* from = in<T>(x) + run * length;
      const float* weight = importance.data() + run * length % columns;
      std::fill(errors, errors + kernels::kCandidates, 0.0);
      for (int64_t at = 0; at < length; at += kernels::kErrorChunk) {
        double part[kernels::kCandidates];
        kernels::candidate_errors(from + at, weight + at, std::min(kernels::kErrorChunk, length - at), lo_,
                                  hi_, grid, symmetric, part);
        for (int c = 0; c < kernels::kCandidates; ++c) errors[c] += part[c];
      }
    };
    std::vector<double> parts(axis ? 0 : runs * kernels::kCandidates);
    parallel(runs, std::max<int64_t>(1, kGrain / kernels::kCandidates / length),
             [&](int64_t begin, int64_t end) {
               for (int64_t r = begin; r < end; ++r) {
                 const int64_t s = axis ? r : 0;
                 if (low[s] > high[s]) continue;
                 if (!axis) {
                   errors_of(r, low[s], high[s], parts.data() + r * kernels::kCandidates);
                   continue;
                 }
                 double errors[kernels::kCandidates];
                 errors_of(r, low[s], high[s], errors);
                 const Best best(low[s], high[s], errors);
                 low[s] = best.range.lo;
                 high[s] = best.range.hi;
               }
             });
    if (!axis && low[0] <= high[0]) {
      double errors[kernels::kCandidates] = {};
      for (size_t i = 0; i < parts.size(); ++i) errors[i % kernels::kCandidates] += parts[i];
      const Best best(low[0], high[0], errors);
      low[0] = best.range.lo;
      high[0] = best.range.hi;
    }
    return 0;
  });
  return {lo, hi};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("mse_range(Tensor x, int? axis, int group, int qmin, int qmax, bool symmetric) -> (Tensor, Tensor)");
  m.def(
      "weighted_mse_range(Tensor x, Tensor importance, int? axis, int group, int qmin, int qmax, bool "
      "symmetric) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) {
  m.impl("mse_range", TORCH_BOX(&mse_range));
  m.impl("weighted_mse_range", TORCH_BOX(&weighted_mse_range));
}

}  // namespace pyquant::torch_ops
