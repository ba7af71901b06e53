// SPDX-License-Identifier: Apache-2.0
// Prompts of `generate` as a command line, a file or a line of a chat has them, as requests.
#pragma once

#include <string>
#include <vector>

#include "cli/cli.h"
#include "host/generate.h"

namespace pyquant::cli {

/// A setting that is wrong, and where it was given.
inline Fault usage(const std::string& text, const std::string& where) {
  return Fault{Code::E_HOST_SETTING, text, where};
}

/// Integers between any of `separators`. Fails on anything else.
Result<std::vector<int64_t>> integers(const std::string& text, const std::string& separators,
                                      const std::string& where);

/// The prompts of --ids or --ids-file.
Result<host::TokenRows> prompts_of(const Arguments& arguments, int64_t batch);

/// The images, videos and clips in a file of a processor's tensors; `grid` ("1x16x24,1x8x8", or nothing) are
/// the sizes that it lacks.
Result<host::Given> media_in(const host::Manifest& manifest, const std::string& file,
                             const std::string& grid);

/// A turn of a chat: token ids, or {"ids": [...], "pixels": "file", "grid": "1x16x24"}, of which all but the
/// ids may be left out. Puts prompts and media into `request`, whose media of before are those of --pixels.
Status read_turn(const host::Manifest& manifest, const std::string& line, host::Request& request);

}  // namespace pyquant::cli
