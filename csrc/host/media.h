// SPDX-License-Identifier: Apache-2.0
// Images, videos and clips of a prompt, as a processor gives them, and where their rows go.
#pragma once

#include <string>
#include <vector>

#include "circle/safetensors.h"
#include "host/manifest.h"
#include "host/prompt.h"
#include "pyquant/status.h"

namespace pyquant::host {

/// One image, video or clip. sizes: of its tower's form: {frames, height, width}, {height, width} or
/// {frames}.
struct Item {
  std::vector<int64_t> sizes;
  Tensor data;  // (patches or frames, width) float32, line by line
};

/// Items of each of the manifest's media, in the order of the prompt.
using Given = std::vector<std::vector<Item>>;

/// The media in a file of a processor's tensors, by the names of the manifest. `grids`, if any, are the sizes
/// of the items of the first media whose own sizes the file lacks. Fails with E_HOST_INPUT.
Result<Given> media_of(const Manifest& manifest, const circle::Safetensors& file,
                       const std::vector<std::vector<int64_t>>& grids);

/// Fills in which of the media each real place is of, and the runs of those that see each other.
void mark_media(const Manifest& manifest, Prompt& prompt);

/// Fills in which row of which tower each place holds: the r-th place of one of the media, row by row, the
/// r-th of its rows. counts: rows of each of the media. Fails with E_HOST_INPUT unless there is one place for
/// each.
Status mark_rows(const Manifest& manifest, const std::vector<int64_t>& counts, Prompt& prompt);

}  // namespace pyquant::host
