// SPDX-License-Identifier: Apache-2.0
// The folder of a bundle: its manifest, and whether the files that it names are there with the sizes that it
// says. (A checksum of gigabytes takes longer than loading them; Python's Session compares it.)
#pragma once

#include <string>

#include "host/manifest.h"

namespace pyquant::host {

/// Fails with E_OPEN without a manifest, as parse_manifest does, and with E_BUNDLE_FILE for files of other
/// sizes.
Result<Manifest> open_bundle(const std::string& folder);

}  // namespace pyquant::host
