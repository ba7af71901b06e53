// SPDX-License-Identifier: Apache-2.0
// Elements of one of two arrays, by a condition; all with strides. Private to csrc.
#pragma once

#include <cstdint>

#include "kernels/nest.h"
#include "kernels/threads.h"

namespace pyquant::kernels {

/// Array 0: conditions (a byte each, true unless 0); 1 and 2: what is taken where it is true, false; 3:
/// written, in order. Elements have 4, 8, 16, 32 or 64 bits.
void select(Threads& threads, const Nest<4>& nest, int bits, const uint8_t* condition,
            const uint8_t* when_true, const uint8_t* when_false, uint8_t* out);

}  // namespace pyquant::kernels
