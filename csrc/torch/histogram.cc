// SPDX-License-Identifier: Apache-2.0
// The histogram observer and the ranges computed from it.
#include <algorithm>
#include <limits>
#include <vector>

#include "torch/widen.h"

namespace pyquant::torch_ops {
namespace {

// Fewer elements per thread than counters to clear and add up would not pay.
constexpr int64_t kCountGrain = 65536;
constexpr int64_t kCountMost = int64_t{1} << 31;

struct Histogram {
  int64_t* counts;
  float* range;
  int64_t bins;
  kernels::Bins where{};
  bool seen;

  Histogram(const char* op, const Tensor& counts_, const Tensor& range_) : bins(counts_.numel()) {
    PYQUANT_CHECK(bins >= 2 && bins <= kernels::kMaxBins, op, ": counts has ", bins, " bins; expected 2 to ",
                  kernels::kMaxBins);
    check_state(op, "counts", counts_, ScalarType::Long, bins);
    check_state(op, "range", range_, ScalarType::Float, 2);
    counts = out<int64_t>(counts_);
    range = out<float>(range_);
    seen = kernels::bins_of(range, bins, &where);
    PYQUANT_CHECK(seen || !(range[0] <= range[1]), op, ": range is [", range[0], ", ", range[1],
                  "], which no histogram of ", bins,
                  " bins has; start it at [inf, -inf] and leave it to this operator");
  }

  // Makes room for [lo, hi] beside what is counted already, in bins of width 2^least or more.
  void grow(double lo, double hi, int least) {
    if (seen) {
      kernels::widen_by_counts(counts, where, bins, &lo, &hi);
      least = std::max(least, where.exponent);
    }
    const kernels::Bins next = kernels::bins_for(lo, hi, least, bins);
    if (seen && (next.exponent != where.exponent || next.first != where.first)) {
      const std::vector<int64_t> old(counts, counts + bins);
      std::fill(counts, counts + bins, 0);
      kernels::add_counts(old.data(), where, bins, counts, next);
    }
    where = next;
    seen = true;
    range[0] = where.edge(0);
    range[1] = where.edge(bins);
  }

  // Adds x, whose finite values fit the bins. Returns how many values are not finite.
  template <class T>
  int64_t add(const T* x, int64_t n) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t parts = std::max<int64_t>(1, std::min(threads, n / kCountGrain));
    const int tables = n / parts >= 4 * bins ? 4 : 1;
    const int64_t stride = tables * (bins + 1);
    std::vector<uint32_t> counters(parts * stride);
    parallel(parts, 1, [&](int64_t begin, int64_t end) {
      const int64_t from = n * begin / parts, to = n * end / parts;
      kernels::count_values(x + from, to - from, where, bins, counters.data() + begin * stride, tables);
    });
    int64_t nonfinite = 0;
    for (int64_t t = 0; t < parts * tables; ++t) {
      const uint32_t* table = counters.data() + t * (bins + 1);
      for (int64_t b = 0; b < bins; ++b) counts[b] += table[b];
      nonfinite += table[bins];
    }
    return nonfinite;
  }
};

void observe_histogram_(const Tensor& counts, const Tensor& range, const Tensor& count, const Tensor& x_) {
  const char* op = "observe_histogram_";
  check_cpu(op, "x", x_);
  Histogram h(op, counts, range);
  check_state(op, "count", count, ScalarType::Long, 2);
  const Tensor x = dense(x_);
  const int64_t n = x.numel();
  int64_t* seen = out<int64_t>(count);
  with_float(op, x, [&](auto type) {
    using T = decltype(type);
    const T* from = in<T>(x);
    for (int64_t begin = 0; begin < n; begin += kCountMost) {
      const int64_t m = std::min(kCountMost, n - begin);
      float lo = kInf, hi = -kInf;
      const int64_t nonfinite = widen_range(from + begin, kernels::ScaleMap::per_tensor(m), &lo, &hi);
      if (lo <= hi) {
        h.grow(lo, hi, kernels::kHistogramExponent);
        h.add(from + begin, m);
      }
      seen[0] += m;
      seen[1] += nonfinite;
    }
    return 0;
  });
}

void merge_histogram_(const Tensor& counts, const Tensor& range, const Tensor& other_counts,
                      const Tensor& other_range) {
  const char* op = "merge_histogram_";
  Histogram h(op, counts, range);
  const Histogram other(op, other_counts, other_range);
  PYQUANT_CHECK(h.bins == other.bins, op, ": counts has ", h.bins, " bins, other_counts has ", other.bins,
                "; expected the same number");
  if (!other.seen) return;
  double lo = kInf, hi = -kInf;
  kernels::widen_by_counts(other.counts, other.where, other.bins, &lo, &hi);
  h.grow(lo, hi, other.where.exponent);
  kernels::add_counts(other.counts, other.where, other.bins, h.counts, h.where);
}

std::tuple<Tensor, Tensor> as_tensors(const Tensor& like, kernels::Range r) {
  Tensor lo = torch::stable::new_empty(like, {}), hi = torch::stable::new_empty(like, {});
  *out<float>(lo) = r.lo;
  *out<float>(hi) = r.hi;
  return {lo, hi};
}

constexpr kernels::Range kNone{std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::quiet_NaN()};

std::tuple<Tensor, Tensor> histogram_percentile(const Tensor& counts, const Tensor& range, double lower,
                                                double upper) {
  const char* op = "histogram_percentile";
  PYQUANT_CHECK(lower >= 0.0 && lower < upper && upper <= 100.0, op, ": percentiles are ", lower, " and ",
                upper, "; expected 0 <= lower < upper <= 100");
  const Histogram h(op, counts, range);
  return as_tensors(range,
                    h.seen ? kernels::percentile_range(h.counts, h.where, h.bins, lower, upper) : kNone);
}

std::tuple<Tensor, Tensor> histogram_mse_range(const Tensor& counts, const Tensor& range, int64_t qmin,
                                               int64_t qmax, bool symmetric) {
  const char* op = "histogram_mse_range";
  check_search_grid(op, qmin, qmax, symmetric);
  const Histogram h(op, counts, range);
  const Grid grid{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
  return as_tensors(range,
                    h.seen ? kernels::least_error_range(h.counts, h.where, h.bins, grid, symmetric) : kNone);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("observe_histogram_(Tensor(a!) counts, Tensor(b!) range, Tensor(c!) count, Tensor x) -> ()");
  m.def(
      "merge_histogram_(Tensor(a!) counts, Tensor(b!) range, Tensor other_counts, Tensor other_range) -> ()");
  m.def("histogram_percentile(Tensor counts, Tensor range, float lower, float upper) -> (Tensor, Tensor)");
  m.def(
      "histogram_mse_range(Tensor counts, Tensor range, int qmin, int qmax, bool symmetric) -> (Tensor, "
      "Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) {
  m.impl("observe_histogram_", TORCH_BOX(&observe_histogram_));
  m.impl("merge_histogram_", TORCH_BOX(&merge_histogram_));
  m.impl("histogram_percentile", TORCH_BOX(&histogram_percentile));
  m.impl("histogram_mse_range", TORCH_BOX(&histogram_mse_range));
}

}  // namespace pyquant::torch_ops
