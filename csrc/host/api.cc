// SPDX-License-Identifier: Apache-2.0
// pyquant/generate.h over Generator, CircleRuntime and the manifest: an application's tensors and settings as
// a host takes them.
#include <algorithm>

#include "circle/safetensors.h"
#include "host/bundle.h"
#include "host/circle_runtime.h"
#include "host/fault.h"
#include "host/generate.h"
#include "pyquant/generate.h"

namespace pyquant {
namespace {

/// As a safetensors file names it; nullptr for none that a processor gives.
const char* stored_dtype(const std::string& dtype, size_t& size) {
  size = dtype == "int64" ? 8 : dtype == "bool" ? 1 : 4;
  if (dtype == "float32") return "F32";
  if (dtype == "int64") return "I64";
  if (dtype == "int32") return "I32";
  return dtype == "bool" ? "BOOL" : nullptr;
}

Result<host::Given> media_of(const host::Manifest& manifest, const Request& request) {
  if (!request.media_file.empty() && !request.media.empty()) {
    return host::fault_of(Code::E_HOST_INPUT, "media and media_file are both given; leave one of them out");
  }
  if (!request.media_file.empty()) {
    PYQUANT_TRY_ASSIGN(const auto file, circle::read_safetensors(request.media_file));
    return host::media_of(manifest, file, {});
  }
  circle::Safetensors tensors;
  tensors.path = "the request";
  for (const MediaTensor& each : request.media) {
    size_t size = 0;
    const char* dtype = stored_dtype(each.dtype, size);
    if (!dtype) {
      return host::fault_of(Code::E_HOST_INPUT, "'" + each.name + "' is '" + each.dtype +
                                                    "', expected float32, int64, int32 or bool");
    }
    if (std::find(each.shape.begin(), each.shape.end(), 0) != each.shape.end()) size = 0;
    for (const int64_t dim : each.shape) {
      // A product above the bytes that there are is wrong, and grows no further.
      if (dim < 0 || (dim && size > each.bytes / static_cast<size_t>(dim))) {
        size = SIZE_MAX;
        break;
      }
      size *= static_cast<size_t>(dim);
    }
    if (size != each.bytes || (size && !each.data)) {
      return host::fault_of(Code::E_HOST_INPUT, "'" + each.name + "' has " + std::to_string(each.bytes) +
                                                    " bytes, which are not " + each.dtype + " " +
                                                    host::shape_text(each.shape));
    }
    const circle::Bytes bytes{static_cast<const uint8_t*>(each.data), each.bytes};
    tensors.tensors[each.name] = {each.name, dtype, each.shape, bytes};
  }
  return host::media_of(manifest, tensors, {});
}

host::Setting setting_of(const SettingValue& value) {
  host::Setting made;
  made.values = value.values;
  made.is_flag = value.is_flag;
  made.is_list = value.is_list;
  made.is_number = !value.is_flag && !value.is_list;
  if (made.is_number && made.values.empty()) made.values = {0};
  made.text = value.is_list ? "a list" : std::to_string(made.values[0]);
  if (value.is_flag) made.text = made.values[0] != 0 ? "true" : "false";
  return made;
}

}  // namespace

struct Conversation::State {
  host::Conversation turns;
};

Conversation::Conversation() : state_(std::make_unique<State>()) {}
Conversation::Conversation(Conversation&&) noexcept = default;
Conversation& Conversation::operator=(Conversation&&) noexcept = default;
Conversation::~Conversation() = default;
const TokenRows& Conversation::tokens() const { return state_->turns.tokens; }

struct Generator::State {
  std::unique_ptr<host::CircleRuntime> runtime;  // outlives the generator
  std::unique_ptr<host::Generator> generator;
};

Generator::Generator(std::unique_ptr<State> state) : state_(std::move(state)) {}
Generator::Generator(Generator&&) noexcept = default;
Generator& Generator::operator=(Generator&&) noexcept = default;
Generator::~Generator() = default;

Result<Generator> Generator::open(const std::string& folder, const GeneratorOptions& options) {
  const auto checks = options.verify ? host::Checks::Checksums : host::Checks::Sizes;
  PYQUANT_TRY_ASSIGN(host::Manifest manifest, host::open_bundle(folder, checks));
  auto state = std::make_unique<State>();
  state->runtime = std::make_unique<host::CircleRuntime>(manifest, folder, options.threads);
  PYQUANT_TRY_ASSIGN(state->generator, host::Generator::create(std::move(manifest), *state->runtime, folder));
  return Generator(std::move(state));
}

int64_t Generator::batch_size() const { return state_->generator->manifest().batch; }
int64_t Generator::max_seq_len() const { return state_->generator->manifest().longest; }

Result<Answer> Generator::generate(const Request& request) { return answer(request, nullptr); }

Result<Answer> Generator::generate(const Request& request, Conversation& conversation) {
  return answer(request, &conversation);
}

Result<Answer> Generator::answer(const Request& request, Conversation* conversation) {
  host::Request own;
  own.prompts = request.prompts;
  own.seed = request.seed;
  for (const auto& [name, value] : request.settings) own.settings[name] = setting_of(value);
  PYQUANT_TRY_ASSIGN(own.media, media_of(state_->generator->manifest(), request));
  auto* turns = conversation ? &conversation->state_->turns : nullptr;
  PYQUANT_TRY_ASSIGN(host::Answer made, state_->generator->generate(own, turns));
  return Answer{std::move(made.tokens), std::move(made.ended), made.seconds[0], made.seconds[1]};
}

}  // namespace pyquant
