// SPDX-License-Identifier: Apache-2.0
// tensor_stats: mean, min, max, standard deviation and how many values are not finite, in one pass over
// memory.
#include <cmath>
#include <limits>
#include <vector>

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

template <class T>
kernels::Stats stats_of(const T* x, int64_t n) {
  constexpr int64_t kChunk = kernels::kStatsChunk;
  if (n <= kChunk) return kernels::chunk_stats(x, n);
  std::vector<kernels::Stats> parts((n + kChunk - 1) / kChunk);
  parallel(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      parts[c] = kernels::chunk_stats(x + c * kChunk, std::min(kChunk, n - c * kChunk));
    }
  });
  return kernels::merge_pairs(parts.data(), static_cast<int64_t>(parts.size()));
}

Tensor tensor_stats(const Tensor& x_) {
  const char* op = "tensor_stats";
  check_cpu(op, "x", x_);
  const Tensor x = dense(x_);
  const int64_t n = x.numel();
  const kernels::Stats s = with_float(op, x, [&](auto type) { return stats_of(in<decltype(type)>(x), n); });
  Tensor result = torch::stable::new_empty(x, {5}, ScalarType::Double);
  double* to = out<double>(result);
  const double none = std::numeric_limits<double>::quiet_NaN();
  const bool any = s.count > 0;
  to[0] = any ? s.mean : none;
  to[1] = any ? static_cast<double>(s.lo) : none;
  to[2] = any ? static_cast<double>(s.hi) : none;
  to[3] = any ? std::sqrt(s.squares / s.count) : none;
  to[4] = static_cast<double>(n) - s.count;
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) { m.def("tensor_stats(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) { m.impl("tensor_stats", TORCH_BOX(&tensor_stats)); }

}  // namespace pyquant::torch_ops
