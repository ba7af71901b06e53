// SPDX-License-Identifier: Apache-2.0
#include "host/media.h"

#include <algorithm>

#include "host/fault.h"

namespace pyquant::host {

void mark_media(const Manifest& manifest, Prompt& prompt) {
  std::vector<bool> sees(manifest.media.size(), false);
  for (size_t i = 0; manifest.together && i < manifest.media.size(); ++i) {
    const auto& names = manifest.together->media;
    sees[i] = std::find(names.begin(), names.end(), manifest.media[i].name) != names.end();
  }
  for (size_t row = 0; row < prompt.batch; ++row) {
    int64_t run = -1;
    bool inside = false;
    for (size_t i = row * prompt.width; i < (row + 1) * prompt.width; ++i) {
      prompt.media[i] = -1;
      for (size_t k = 0; prompt.real[i] && k < manifest.media.size(); ++k) {
        if (prompt.ids[i] == manifest.media[k].token_id) prompt.media[i] = static_cast<int32_t>(k);
      }
      const bool now = prompt.media[i] >= 0 && sees[static_cast<size_t>(prompt.media[i])];
      if (now && !inside) ++run;
      prompt.runs[i] = now ? run : -1;
      inside = now;
    }
  }
}

Status mark_rows(const Manifest& manifest, const std::vector<int64_t>& counts, Prompt& prompt) {
  std::vector<int64_t> start(manifest.media.size(), 0), next(manifest.media.size(), 0);
  std::vector<int32_t> tower(manifest.media.size(), -1);
  for (size_t k = 0; k < manifest.media.size(); ++k) {
    for (size_t t = 0; t < manifest.towers.size(); ++t) {
      if (manifest.towers[t].name == manifest.media[k].tower) tower[k] = static_cast<int32_t>(t);
    }
    for (size_t before = 0; before < k; ++before) {
      if (manifest.media[before].tower == manifest.media[k].tower) start[k] += counts[before];
    }
  }
  for (size_t i = 0; i < prompt.ids.size(); ++i) {
    prompt.tower[i] = -1;
    if (prompt.media[i] < 0) continue;
    const auto k = static_cast<size_t>(prompt.media[i]);
    prompt.tower[i] = tower[k];
    prompt.row[i] = start[k] + next[k]++;
  }
  for (size_t k = 0; k < manifest.media.size(); ++k) {
    if (next[k] == counts[k]) continue;
    return fault_of(Code::E_HOST_INPUT,
                    "the prompt has " + std::to_string(next[k]) + " " + manifest.media[k].name +
                        " placeholder tokens (id " + std::to_string(manifest.media[k].token_id) + "), but '" +
                        manifest.media[k].data + "' make " + std::to_string(counts[k]) +
                        "; expand each placeholder to as many tokens, as a processor does");
  }
  return {};
}

}  // namespace pyquant::host
