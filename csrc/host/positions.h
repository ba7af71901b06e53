// SPDX-License-Identifier: Apache-2.0
// Positions of the rotary embedding: tokens counted, or, where the manifest says so, by the grids of media:
// an item starts where the text before it ended, its rows differ in height and width, and what follows starts
// past its longer side.
#pragma once

#include "host/manifest.h"
#include "host/media.h"
#include "host/prompt.h"
#include "pyquant/status.h"

namespace pyquant::host {

/// Fills in positions and deltas of a prompt whose ids, real and media are there, behind rows of `lengths`
/// tokens whose next positions are `deltas` further. Fails with E_HOST_INPUT where places and items do not
/// fit each other.
Status place(const Manifest& manifest, const Given& given, const std::vector<int64_t>& lengths,
             const std::vector<int64_t>& deltas, Prompt& prompt);

}  // namespace pyquant::host
