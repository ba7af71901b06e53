// SPDX-License-Identifier: Apache-2.0
// pyquant-circle generate: tokens that follow prompts, with the graphs of a bundle; a host without Python.
#include <charconv>
#include <cstdio>
#include <iostream>

#include "circle/json.h"
#include "cli/cli.h"
#include "cli/prompts.h"
#include "host/bundle.h"
#include "host/circle_runtime.h"
#include "host/replay.h"

namespace pyquant::cli {
namespace {

using host::TokenRows;

/// Options that are entries of a generation config.
struct Named {
  const char* option;
  const char* setting;
  bool samples;  // given, it asks for sampling
};
constexpr Named kSettings[] = {{"--max-new-tokens", "max_new_tokens", false},
                               {"--min-new-tokens", "min_new_tokens", false},
                               {"--temperature", "temperature", true},
                               {"--top-k", "top_k", true},
                               {"--top-p", "top_p", true},
                               {"--min-p", "min_p", true},
                               {"--repetition-penalty", "repetition_penalty", false},
                               {"--no-repeat-ngram-size", "no_repeat_ngram_size", false}};

Result<host::SettingMap> settings_of(const Arguments& arguments) {
  host::SettingMap found;
  bool samples = arguments.has("--sample");
  for (const Named& named : kSettings) {
    if (!arguments.has(named.option)) continue;
    const std::string text = arguments.get(named.option);
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || stop != text.data() + text.size()) {
      return usage("saw '" + text + "', expected a number", named.option);
    }
    found[named.setting] = host::setting_of(value);
    samples = samples || named.samples;
  }
  if (arguments.has("--eos")) {
    host::Setting& eos = found["eos_token_id"];
    eos.is_list = true;
    eos.text = arguments.get("--eos");
    if (eos.text != "none") {
      PYQUANT_TRY_ASSIGN(const auto tokens, integers(eos.text, ",", "--eos"));
      eos.values.assign(tokens.begin(), tokens.end());
    }
  }
  if (samples || arguments.has("--greedy")) {
    if (samples && arguments.has("--greedy")) {
      return usage("is given beside an option of sampling; leave one of them out", "--greedy");
    }
    host::Setting& sample = found["do_sample"];
    sample.is_flag = true;
    sample.values = {samples ? 1.0 : 0.0};
  }
  return found;
}

std::string line_of(const std::vector<int64_t>& tokens, const char* between) {
  std::string line;
  for (size_t i = 0; i < tokens.size(); ++i) line += (i ? between : "") + std::to_string(tokens[i]);
  return line;
}

void print(const host::Answer& answer, const TokenRows& prompts, bool json) {
  if (!json) {
    for (const auto& tokens : answer.tokens) std::printf("%s\n", line_of(tokens, ",").c_str());
    return;
  }
  std::string text = "{\"rows\": [";
  for (size_t row = 0; row < answer.tokens.size(); ++row) {
    text += std::string(row ? ", " : "") + "{\"prompt\": [" + line_of(prompts[row], ", ") +
            "], \"tokens\": [" + line_of(answer.tokens[row], ", ") + "], \"end\": \"" +
            (answer.ended[row] ? "token" : "length") + "\"}";
  }
  text += "], \"seconds_to_first_token\": ";
  circle::json::append_float(text, static_cast<float>(answer.seconds[0]));
  text += ", \"seconds\": ";
  circle::json::append_float(text, static_cast<float>(answer.seconds[1]));
  std::printf("%s}\n", text.c_str());
}

/// One prompt, or a turn for each line of the standard input.
Status answer(const Arguments& arguments, const host::Generator& generator, host::Request& request) {
  const bool json = arguments.has("--json");
  if (!arguments.has("--chat")) {
    PYQUANT_TRY_ASSIGN(request.prompts, prompts_of(arguments, generator.manifest().batch));
    PYQUANT_TRY_ASSIGN(const host::Answer made, generator.generate(request));
    print(made, request.prompts, json);
    return {};
  }
  host::Conversation conversation;
  for (std::string line; std::getline(std::cin, line);) {
    PYQUANT_TRY(read_turn(generator.manifest(), line, request));
    PYQUANT_TRY_ASSIGN(const host::Answer made, generator.generate(request, &conversation));
    print(made, request.prompts, json);
    std::fflush(stdout);
    request.media.clear();  // each turn has its own
  }
  return {};
}

Status generate(const Arguments& arguments, int64_t seed, int64_t threads) {
  const std::string folder = arguments.positionals[0];
  PYQUANT_TRY_ASSIGN(
      host::Manifest manifest,
      host::open_bundle(folder, arguments.has("--verify") ? host::Checks::Checksums : host::Checks::Sizes));
  host::Request request;
  PYQUANT_TRY_ASSIGN(request.settings, settings_of(arguments));
  request.seed = static_cast<uint64_t>(seed);
  if (arguments.has("--pixels")) {
    PYQUANT_TRY_ASSIGN(request.media, media_in(manifest, arguments.get("--pixels"), arguments.get("--grid")));
  }
  if (arguments.has("--replay")) {
    PYQUANT_TRY_ASSIGN(const auto replay, host::Replay::open(arguments.get("--replay")));
    PYQUANT_TRY_ASSIGN(const auto generator, host::Generator::create(std::move(manifest), *replay, folder));
    PYQUANT_TRY(answer(arguments, *generator, request));
    return replay->finish();
  }
  host::CircleRuntime runtime(manifest, folder, static_cast<int>(threads));
  PYQUANT_TRY_ASSIGN(const auto generator, host::Generator::create(std::move(manifest), runtime, folder));
  return answer(arguments, *generator, request);
}

int run(const Arguments& arguments) {
  const int prompts = arguments.has("--ids") + arguments.has("--ids-file") + arguments.has("--chat");
  if (prompts != 1) {
    complain(std::string("exactly one of --ids, --ids-file and --chat is needed; usage: pyquant-circle ") +
             kGenerate.usage);
    return kFailed;
  }
  if (arguments.has("--grid") && !arguments.has("--pixels")) {
    complain("option '--grid' says the sizes of what --pixels has, which is missing");
    return kFailed;
  }
  int64_t seed = 0, threads = 0;
  if (!number_of(arguments, "--seed", 0, INT64_MAX, seed) ||
      !number_of(arguments, "--threads", 0, 1024, threads)) {
    return kFailed;
  }
  const Status done = generate(arguments, seed, threads);
  if (done.ok()) return kFine;
  complain(done.fault().text());
  return done.fault().code == Code::E_REPLAY ? kFound : kFailed;
}

}  // namespace

const Verb kGenerate = {
    "generate",
    "generate BUNDLE (--ids 1,2,3 | --ids-file F | --chat) [--pixels p.safetensors [--grid 1x16x24]] "
    "[--max-new-tokens N] [--min-new-tokens N] [--eos IDS|none] [--greedy | [--sample] [--temperature T] "
    "[--top-k K] "
    "[--top-p P] [--min-p P]] [--seed N] [--repetition-penalty R] [--no-repeat-ngram-size N] [--threads N] "
    "[--json] [--verify] "
    "[--replay calls.safetensors]",
    "prints the tokens that follow a prompt of token ids (rows between ';', or lines of a file), with the "
    "graphs of a "
    "bundle and nothing but its manifest; --chat takes a turn from each line of the standard input: ids, or "
    "{\"ids\": [1, 2], \"pixels\": \"p.safetensors\"}; --verify compares the sha256 of each file first",
    {{"--ids", "token ids"},
     {"--ids-file", "a file"},
     {"--chat", nullptr},
     {"--pixels", "a file"},
     {"--grid", "sizes in patches"},
     {"--max-new-tokens", "a number"},
     {"--min-new-tokens", "a number"},
     {"--eos", "token ids, or none"},
     {"--greedy", nullptr},
     {"--sample", nullptr},
     {"--temperature", "a number"},
     {"--top-k", "a number"},
     {"--top-p", "a number"},
     {"--min-p", "a number"},
     {"--seed", "a number"},
     {"--repetition-penalty", "a number"},
     {"--no-repeat-ngram-size", "a number"},
     {"--threads", "a number"},
     {"--json", nullptr},
     {"--verify", nullptr},
     {"--replay", "a file"}},
    1,
    run};

}  // namespace pyquant::cli
