// SPDX-License-Identifier: Apache-2.0
// minmax and the observers that keep it: observe_minmax_, observe_ema_.
#include <vector>

#include "torch/widen.h"

namespace pyquant::torch_ops {
namespace {

int64_t widen(const char* op, const Tensor& x, const kernels::ScaleMap& map, float* lo, float* hi) {
  return with_float(op, x, [&](auto type) { return widen_range(in<decltype(type)>(x), map, lo, hi); });
}

struct State {
  float *lo, *hi;
  int64_t* count;

  State(const char* op, const Tensor& lo_, const Tensor& hi_, const Tensor& count_, int64_t scales) {
    check_state(op, "lo", lo_, ScalarType::Float, scales);
    check_state(op, "hi", hi_, ScalarType::Float, scales);
    check_state(op, "count", count_, ScalarType::Long, 2);
    lo = out<float>(lo_);
    hi = out<float>(hi_);
    count = out<int64_t>(count_);
  }
};

void observe_minmax_(const Tensor& lo, const Tensor& hi, const Tensor& count, const Tensor& x_, Axis axis) {
  const char* op = "observe_minmax_";
  check_cpu(op, "x", x_);
  const Granularity g = granularity(op, x_, axis, 0);
  const State state(op, lo, hi, count, g.scales(x_));
  const Tensor x = dense(x_);
  const int64_t nonfinite = widen(op, x, g.map, state.lo, state.hi);
  state.count[0] += x.numel();
  state.count[1] += nonfinite;
}

void observe_ema_(const Tensor& lo, const Tensor& hi, const Tensor& count, const Tensor& x_, Axis axis,
                  double momentum) {
  const char* op = "observe_ema_";
  check_cpu(op, "x", x_);
  PYQUANT_CHECK(momentum >= 0.0 && momentum < 1.0, op, ": momentum is ", momentum,
                "; expected 0 <= momentum < 1");
  const Granularity g = granularity(op, x_, axis, 0);
  const int64_t n = g.scales(x_);
  const State state(op, lo, hi, count, n);
  const Tensor x = dense(x_);
  std::vector<float> batch(2 * n, kInf);
  float *low = batch.data(), *high = batch.data() + n;
  std::fill(high, high + n, -kInf);
  const int64_t nonfinite = widen(op, x, g.map, low, high);
  const float keep = static_cast<float>(momentum), add = static_cast<float>(1.0 - momentum);
  for (int64_t s = 0; s < n; ++s) {
    if (low[s] > high[s]) continue;  // nothing finite in this batch
    const bool first = state.lo[s] > state.hi[s];
    state.lo[s] = first ? low[s] : keep * state.lo[s] + add * low[s];
    state.hi[s] = first ? high[s] : keep * state.hi[s] + add * high[s];
  }
  state.count[0] += x.numel();
  state.count[1] += nonfinite;
}

std::tuple<Tensor, Tensor> minmax(const Tensor& x_, Axis axis, int64_t group) {
  check_cpu("minmax", "x", x_);
  const Granularity g = granularity("minmax", x_, axis, group);
  const Tensor x = dense(x_);
  Tensor lo = empty_scales(x, g), hi = empty_scales(x, g);
  float *low = out<float>(lo), *high = out<float>(hi);
  const int64_t n = lo.numel();
  std::fill(low, low + n, kInf);
  std::fill(high, high + n, -kInf);
  widen("minmax", x, g.map, low, high);
  return {lo, hi};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("observe_minmax_(Tensor(a!) lo, Tensor(b!) hi, Tensor(c!) count, Tensor x, int? axis) -> ()");
  m.def(
      "observe_ema_(Tensor(a!) lo, Tensor(b!) hi, Tensor(c!) count, Tensor x, int? axis, float momentum) -> "
      "()");
  m.def("minmax(Tensor x, int? axis, int group) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) {
  m.impl("observe_minmax_", TORCH_BOX(&observe_minmax_));
  m.impl("observe_ema_", TORCH_BOX(&observe_ema_));
  m.impl("minmax", TORCH_BOX(&minmax));
}

}  // namespace pyquant::torch_ops
