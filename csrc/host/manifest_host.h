// SPDX-License-Identifier: Apache-2.0
// The part of parse_manifest that reads `host_data` and the rotary entries that it names. Private to the
// room.
#pragma once

#include "host/fields.h"
#include "host/manifest.h"

namespace pyquant::host {

/// Reads into `manifest`; faults are noted in the fields of `root`.
void read_host_data(const Field& root, Manifest& manifest);

}  // namespace pyquant::host
