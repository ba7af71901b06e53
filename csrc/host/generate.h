// SPDX-License-Identifier: Apache-2.0
// Generation over the graphs of one bundle, from its manifest alone: what Python's pyquant.verify.Session
// does, for applications in C++. Tokens in, tokens out; text and pixels of images are a tokenizer's and a
// processor's work.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "host/cache.h"
#include "host/media.h"
#include "host/runtime.h"
#include "host/settings.h"

namespace pyquant::host {

using TokenRows = std::vector<std::vector<int64_t>>;

struct Request {
  TokenRows prompts;  // as many as the bundle's batch_size, without padding
  Given media;        // of the prompts in turn
  SettingMap settings;
  uint64_t seed = 0;
};

struct Answer {
  TokenRows tokens;             // new ones of each row, the one that ended it included
  std::vector<bool> ended;      // by an end token; else the room or the length that was asked for
  std::vector<double> seconds;  // until the first token, and all of them
};

/// Turns so far: all tokens of each row, and the cache of all but the last. Empty before the first turn.
struct Conversation {
  TokenRows tokens;
  std::optional<Cache> cache;
};

class Generator {
 public:
  /// `folder` is where the bundle's tables are; it may be empty where there are none. The runtime has to live
  /// longer. Fails with E_MANIFEST for a bundle that cannot generate.
  static Result<std::unique_ptr<Generator>> create(Manifest manifest, Runtime& runtime,
                                                   const std::string& folder);
  ~Generator();

  const Manifest& manifest() const;
  /// One turn of `conversation` (nullptr: a prompt of its own). After an error the conversation is as it was.
  /// Fails with E_HOST_INPUT for what no graph takes or has no room for, E_HOST_SETTING for settings, and as
  /// the runtime does.
  Result<Answer> generate(const Request& request, Conversation* conversation = nullptr) const;

 private:
  struct Parts;
  explicit Generator(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace pyquant::host
