// SPDX-License-Identifier: Apache-2.0
// Items of media through the graphs of their towers, and their rows into the places of a prompt.
#pragma once

#include "host/calls.h"
#include "host/media.h"

namespace pyquant::host {

/// What one tower made of all items: a tensor (rows, width) for each of its outputs; none without items.
using Features = std::vector<Tensor>;

struct TowerRows {
  std::vector<Features> towers;  // by the manifest's towers
  std::vector<int64_t> counts;   // rows of each of the media
};

/// Rows of an item, for towers of form "grids" and "places", and of frames.
int64_t rows_of(const Tower& tower, const std::vector<int64_t>& sizes);
/// Runs the towers, media in turn. Fails with E_HOST_INPUT for items that no graph takes.
Result<TowerRows> run_towers(const Manifest& manifest, const Calls& calls, const Given& given);
/// A clip as the inputs of a graph of `frames` frames: (1, frames, width), and which are real (1, frames).
std::pair<Tensor, Tensor> padded_clip(const Item& item, int64_t frames);

/// Rows that one part of a prompt uses, as inputs of the graph that joins them with text (batch, places,
/// width).
struct Joined {
  std::map<std::string, Tensor> inputs;  // by the step's names, of those that the graph takes
  Tensor index;                          // int32 (batch, places)
};
Joined join(const Step& step, const Graph& graph, const TowerRows& rows, const Prompt& prompt, int64_t width);

}  // namespace pyquant::host
