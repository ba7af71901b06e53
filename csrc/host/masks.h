// SPDX-License-Identifier: Apache-2.0
// Masks (batch, 1, queries, keys) of 0 and the manifest's fill: later places, padding, windows, slots of the
// cache, bands, and media whose places see each other.
#pragma once

#include "host/cache.h"
#include "host/manifest.h"
#include "host/prompt.h"

namespace pyquant::host {

/// The mask of one variant of layers for a prompt behind `cache`, whose keys come first if `past`. `block`:
/// tokens of a block where the graph attends in bands, 0: it does not.
Tensor mask_of(const Manifest& manifest, size_t variant, const Prompt& prompt, const Cache& cache, bool past,
               int64_t block);

}  // namespace pyquant::host
