// SPDX-License-Identifier: Apache-2.0
// INSTANCE_NORM: some channels of one batch at a time, position after position.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/norm.h"
#include "kernels/real.h"

namespace pyquant::kernels {
namespace {

__extension__ typedef __int128 Wide;

struct Moments {
  double mean[InstanceNorm::kChannels];      // in units of the data: real numbers, or q - zero_point
  double variance[InstanceNorm::kChannels];  // real
};

template <class T>
void real_moments(const InstanceNorm& plan, const T* x, int64_t count, Moments* out) {
  const auto n = static_cast<double>(plan.positions);
  double sum[InstanceNorm::kChannels] = {}, squares[InstanceNorm::kChannels] = {};
  for (int64_t p = 0; p < plan.positions; ++p) {
    for (int64_t c = 0; c < count; ++c) sum[c] += static_cast<double>(x[p * plan.channels + c]);
  }
  for (int64_t c = 0; c < count; ++c) out->mean[c] = sum[c] / n;
  for (int64_t p = 0; p < plan.positions; ++p) {
    for (int64_t c = 0; c < count; ++c) {
      const double d = static_cast<double>(x[p * plan.channels + c]) - out->mean[c];
      squares[c] += d * d;
    }
  }
  for (int64_t c = 0; c < count; ++c) out->variance[c] = squares[c] / n;
}

template <class Q>
void integer_moments(const InstanceNorm& plan, const Q* x, int64_t count, Moments* out) {
  int64_t sum[InstanceNorm::kChannels] = {}, squares[InstanceNorm::kChannels] = {};
  for (int64_t p = 0; p < plan.positions; ++p) {
    for (int64_t c = 0; c < count; ++c) {
      const int64_t d = x[p * plan.channels + c] - plan.in.zero_point;
      sum[c] += d;
      squares[c] += d * d;
    }
  }
  const auto n = static_cast<double>(plan.positions);
  const double scale = plan.in.scale;
  for (int64_t c = 0; c < count; ++c) {
    out->mean[c] = static_cast<double>(sum[c]) / n;
    const Wide spread = static_cast<Wide>(plan.positions) * squares[c] - static_cast<Wide>(sum[c]) * sum[c];
    out->variance[c] = static_cast<double>(spread) / (n * n) * (scale * scale);
  }
}

template <class T>
void unit(const InstanceNorm& plan, const T* x, int64_t count, const double* gamma, const double* beta,
          T* y) {
  constexpr bool kFloat = std::is_floating_point_v<T>;
  Moments of;
  if constexpr (kFloat) {
    real_moments(plan, x, count, &of);
  } else {
    integer_moments(plan, x, count, &of);
  }
  double factor[InstanceNorm::kChannels];
  for (int64_t c = 0; c < count; ++c) {
    factor[c] = gamma[plan.one_gamma ? 0 : c] / std::sqrt(of.variance[c] + plan.epsilon);
    if constexpr (!kFloat) factor[c] *= plan.in.scale;
  }
  for (int64_t p = 0; p < plan.positions; ++p) {
    double v[InstanceNorm::kChannels];
    for (int64_t c = 0; c < count; ++c) {
      double d;
      if constexpr (kFloat) {
        d = static_cast<double>(x[p * plan.channels + c]) - of.mean[c];
      } else {
        d = static_cast<double>(x[p * plan.channels + c] - plan.in.zero_point) - of.mean[c];
      }
      v[c] = d * factor[c] + beta[plan.one_beta ? 0 : c];
    }
    T* const to = y + p * plan.channels;
    if constexpr (kFloat) {
      for (int64_t c = 0; c < count; ++c) to[c] = static_cast<T>(v[c]);
      activate(plan.fused, to, count);
    } else {
      for (int64_t c = 0; c < count; ++c) {
        v[c] = (plan.fused == Fused::tanh ? real_tanh(v[c]) : v[c]) / plan.out.scale;
      }
      round_block(v, count, plan.out, to);
    }
  }
}

}  // namespace

template <class T>
void instance_norm(const InstanceNorm& plan, const T* x, const double* gamma, const double* beta, T* y,
                   int64_t begin, int64_t end) {
  for (int64_t u = begin; u < end; ++u) {
    const int64_t batch = u / plan.units_per_batch(),
                  c = u % plan.units_per_batch() * InstanceNorm::kChannels;
    const int64_t at = batch * plan.positions * plan.channels + c;
    unit(plan, x + at, std::min(InstanceNorm::kChannels, plan.channels - c), gamma + (plan.one_gamma ? 0 : c),
         beta + (plan.one_beta ? 0 : c), y + at);
  }
}

#define PYQUANT_INSTANCE_NORM(T)                                                                        \
  template void instance_norm(const InstanceNorm&, const T*, const double*, const double*, T*, int64_t, \
                              int64_t);
PYQUANT_INSTANCE_NORM(float)
PYQUANT_INSTANCE_NORM(double)
PYQUANT_INSTANCE_NORM(int8_t)
PYQUANT_INSTANCE_NORM(uint8_t)
PYQUANT_INSTANCE_NORM(int16_t)
#undef PYQUANT_INSTANCE_NORM

}  // namespace pyquant::kernels
