// SPDX-License-Identifier: Apache-2.0
// What a caller and the model's generation config ask of generating, by transformers' names: entries that
// change the choice of tokens are known, or refused by name.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "host/manifest.h"
#include "pyquant/status.h"

namespace pyquant::host {

using SettingMap = std::map<std::string, Setting>;

/// A caller's setting.
Setting setting_of(double value);

struct Settings {
  bool do_sample = false;
  float temperature = 1, repetition_penalty = 1;
  double top_p = 1, min_p = 0;
  int64_t top_k = 50;  // transformers' default
  int64_t no_repeat_ngram_size = 0, min_length = 0, min_new_tokens = 0;
  std::vector<int64_t> eos, suppressed, suppressed_first;
  int64_t pad = 0;
  // How many tokens may follow: the number, whether the caller named it, and whether the prompt counts.
  int64_t most = 20;
  bool most_by_caller = false, most_with_prompt = false;

  /// Over the model's entries those of a caller. Fails with E_HOST_SETTING for what this program does not do.
  static Result<Settings> of(const SettingMap& model, const SettingMap& caller);
  bool ends(int64_t token) const;
};

}  // namespace pyquant::host
