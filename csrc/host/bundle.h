// SPDX-License-Identifier: Apache-2.0
// The folder of a bundle: its manifest, and whether the files that it names are there as it says: their
// sizes, and if a caller asks for it their checksums (which read gigabytes; Python's Session always compares
// them).
#pragma once

#include <string>

#include "host/manifest.h"

namespace pyquant::host {

enum class Checks : uint8_t { Sizes, Checksums };

/// Fails with E_OPEN without a manifest, as parse_manifest does, and with E_BUNDLE_FILE for files that are
/// not those that were exported.
Result<Manifest> open_bundle(const std::string& folder, Checks checks = Checks::Sizes);

}  // namespace pyquant::host
