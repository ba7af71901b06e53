// SPDX-License-Identifier: Apache-2.0
// One call of generate(): the tokens that are new to the cache, how many may follow, and the graphs that take
// them.
#pragma once

#include "host/generate.h"

namespace pyquant::host {

struct Turn {
  Prompt prompt;
  Cache cache;       // of its own
  TokenRows tokens;  // all of the conversation, with this turn
  int64_t most = 0;  // tokens that may follow
};

/// A part of a prompt and the graph for it.
struct Part {
  std::string kind;
  size_t start, stop, length;
};

/// Fails with E_HOST_INPUT for prompts of another batch, empty ones, and those without a graph or room.
Result<Turn> turn_of(const Manifest& manifest, const Request& request, const Conversation* conversation,
                     const Settings& settings);

/// The shortest prefill that holds `width` tokens; else the longest, and append graphs for what is left.
std::vector<Part> parts_of(const Manifest& manifest, size_t width, bool continues);

/// Fails with E_HOST_INPUT where a part ends within media whose places see each other.
Status check_parts(const Manifest& manifest, const std::vector<Part>& parts, const Prompt& prompt);

}  // namespace pyquant::host
