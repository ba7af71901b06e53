// SPDX-License-Identifier: Apache-2.0
// Generating with a bundle from C++: what `pyquant-circle generate` and Python's pyquant.verify.Session do,
// from the bundle's manifest alone. Tokens in, tokens out; text and the pixels of images are a tokenizer's
// and a processor's work. Needs std alone; single files are run.h.
//
//   auto opened = pyquant::Generator::open("bundle");
//   pyquant::Request request;
//   request.prompts = {{1, 2, 3}};
//   request.settings["max_new_tokens"] = 20;
//   auto answer = opened.value().generate(request);   // answer.value().tokens[0]
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pyquant/status.h"

#if !defined(PYQUANT_API) && defined(__GNUC__)
#define PYQUANT_API __attribute__((visibility("default")))
#elif !defined(PYQUANT_API)
#define PYQUANT_API
#endif

namespace pyquant {

using TokenRows = std::vector<std::vector<int64_t>>;

/// A tensor of a processor, by its name there: pixel_values, image_grid_thw, input_features, ... The bytes
/// are the caller's, and are read while `generate` runs.
struct MediaTensor {
  std::string name;
  std::string dtype;  // "float32", "int64", "int32" or "bool"
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t bytes = 0;
};

/// The value of an entry of a generation config.
struct SettingValue {
  SettingValue() = default;
  SettingValue(bool flag) : is_flag(true), values{flag ? 1.0 : 0.0} {}  // NOLINT
  SettingValue(int number) : values{static_cast<double>(number)} {}     // NOLINT
  SettingValue(double number) : values{number} {}                       // NOLINT
  SettingValue(const std::vector<int64_t>& tokens)                      // NOLINT
      : is_list(true), values(tokens.begin(), tokens.end()) {}
  bool is_flag = false, is_list = false;
  std::vector<double> values;
};

struct Request {
  TokenRows prompts;  // as many as the bundle's batch size, without padding
  std::vector<MediaTensor> media;
  std::string media_file;  // a safetensors file of such tensors, in place of `media`
  /// By transformers' names (max_new_tokens, do_sample, temperature, top_k, eos_token_id, ...); what is left
  /// out follows the model's generation config.
  std::map<std::string, SettingValue> settings;
  uint64_t seed = 0;  // of sampling: the same tokens on every machine
};

struct Answer {
  TokenRows tokens;             // new ones of each row, the one that ended it included
  std::vector<bool> ended;      // by an end token; else the room or the length that was asked for
  double seconds_to_first = 0;  // until the first token
  double seconds = 0;           // all of them
};

/// Turns so far, with the cache of their keys and values. Empty before the first turn. A moved-from one may
/// only be destroyed.
class PYQUANT_API Conversation {
 public:
  Conversation();
  Conversation(Conversation&&) noexcept;
  Conversation& operator=(Conversation&&) noexcept;
  ~Conversation();

  /// All tokens of each row, answers included.
  const TokenRows& tokens() const;

 private:
  friend class Generator;
  struct State;
  std::unique_ptr<State> state_;
};

struct GeneratorOptions {
  int threads = 0;      // 0: as many as the process may use
  bool verify = false;  // compare the sha256 of each file with the manifest's (seconds for a gigabyte)
};

/// A bundle that generates. Not copied; one call at a time. A moved-from one may only be destroyed.
class PYQUANT_API Generator {
 public:
  /// `folder` is what pyquant.export_bundle or `pyquant quantize` wrote. Fails with E_OPEN, E_MANIFEST or
  /// E_BUNDLE_FILE; graphs are loaded when they first run.
  static Result<Generator> open(const std::string& folder, const GeneratorOptions& options = {});
  Generator(Generator&&) noexcept;
  Generator& operator=(Generator&&) noexcept;
  ~Generator();

  /// Rows of every prompt.
  int64_t batch_size() const;
  /// Tokens that a conversation may have, answers included.
  int64_t max_seq_len() const;

  /// The tokens that follow. Fails with E_HOST_INPUT for prompts or media that the bundle has no graph or no
  /// room for, with E_HOST_SETTING for settings, and as the runner does.
  Result<Answer> generate(const Request& request);
  /// One turn of a conversation, which goes on to the end of the answer; media are those of this turn. Needs
  /// a bundle with append_lengths from the second turn on. After an error the conversation is as it was.
  Result<Answer> generate(const Request& request, Conversation& conversation);

 private:
  struct State;
  explicit Generator(std::unique_ptr<State> state);
  Result<Answer> answer(const Request& request, Conversation* conversation);
  std::unique_ptr<State> state_;
};

}  // namespace pyquant
