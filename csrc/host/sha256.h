// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4), as the manifest of a bundle names its files by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pyquant::host {

/// 64 lowercase hexadecimal digits.
std::string sha256(const uint8_t* data, size_t size);

}  // namespace pyquant::host
