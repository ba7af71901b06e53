// SPDX-License-Identifier: Apache-2.0
#include "host/rotary.h"

#include <cmath>

namespace pyquant::host {

RotaryTensors rotary_tables(const Rotary& rotary, const Prompt& prompt) {
  const size_t half = rotary.inv_freq.size(), places = prompt.batch * prompt.width;
  const Shape shape{static_cast<int64_t>(prompt.batch), static_cast<int64_t>(prompt.width),
                    static_cast<int64_t>(2 * half)};
  RotaryTensors made{Tensor::zeros(Type::Float32, shape), Tensor::zeros(Type::Float32, shape)};
  for (size_t place = 0; place < places; ++place) {
    float* cosines = made.cos.floats() + place * 2 * half;
    float* sines = made.signed_sin.floats() + place * 2 * half;
    for (size_t j = 0; j < half; ++j) {
      const size_t axis = rotary.axis.empty() ? 0 : static_cast<size_t>(rotary.axis[j]);
      const auto position = static_cast<float>(prompt.positions[axis * places + place]);
      const float angle = position * rotary.inv_freq[j];
      const float cosine = static_cast<float>(std::cos(static_cast<double>(angle))) * rotary.scaling;
      const float sine = static_cast<float>(std::sin(static_cast<double>(angle))) * rotary.scaling;
      cosines[j] = cosines[half + j] = cosine;
      sines[j] = -sine;
      sines[half + j] = sine;
    }
  }
  return made;
}

}  // namespace pyquant::host
