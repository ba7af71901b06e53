// SPDX-License-Identifier: Apache-2.0
// Rotary tables from the frequencies of a manifest.
//
// Bit for bit those of Python's host (pyquant/decoder/layout.py): position and frequency are multiplied in
// float32, the cosine and sine of that angle are computed in double and rounded to float32 once, then
// multiplied by the scaling in float32.
#pragma once

#include "host/manifest.h"
#include "host/prompt.h"

namespace pyquant::host {

struct RotaryTensors {
  Tensor cos, signed_sin;  // (batch, width, 2 * frequencies)
};

/// For positions (axes, batch, width).
RotaryTensors rotary_tables(const Rotary& rotary, const Prompt& prompt);

}  // namespace pyquant::host
