// SPDX-License-Identifier: Apache-2.0
// From a range to a scale and a zero point, and the integers of a bias.
#include "pyquant/qparams.h"

#include <algorithm>
#include <limits>

namespace pyquant {

ScaleZeroPoint choose_qparams(float lo, float hi, Grid grid, bool symmetric) {
  const int32_t zero = std::min(std::max(0, grid.qmin), grid.qmax);
  if (!std::isfinite(lo) || !std::isfinite(hi) || lo > hi)
    return {std::numeric_limits<float>::quiet_NaN(), zero};
  const double low = std::min(static_cast<double>(lo), 0.0), high = std::max(static_cast<double>(hi), 0.0);
  const double wide = symmetric ? std::max(-low, high) / grid.qmax : (high - low) / (grid.qmax - grid.qmin);
  const float scale = static_cast<float>(wide);
  if (std::isinf(scale)) return {std::numeric_limits<float>::quiet_NaN(), zero};
  if (scale < std::numeric_limits<float>::min()) return {1.0f, zero};
  if (symmetric) return {scale, zero};
  const double q = std::round(grid.qmin - low / scale);
  return {scale, static_cast<int32_t>(std::min<double>(std::max<double>(q, grid.qmin), grid.qmax))};
}

int64_t quantize_bias(float bias, float scale, int bits) {
  const double limit = bits == 32 ? 0x1p31 : 0x1p63;
  const double q = std::round(static_cast<double>(bias) / scale);
  if (!(q > -limit))
    return bits == 32 ? std::numeric_limits<int32_t>::min() : std::numeric_limits<int64_t>::min();
  if (q >= limit)
    return bits == 32 ? std::numeric_limits<int32_t>::max() : std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(q);
}

float dequantize_bias(int64_t q, float scale) { return static_cast<float>(static_cast<double>(q) * scale); }

}  // namespace pyquant
