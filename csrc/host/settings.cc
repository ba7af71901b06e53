// SPDX-License-Identifier: Apache-2.0
#include "host/settings.h"

#include <algorithm>
#include <cmath>

#include "host/fault.h"

namespace pyquant::host {
namespace {

/// Entries that change no choice of tokens here, whatever their value.
constexpr const char* kIgnored[] = {"bos_token_id",
                                    "decoder_start_token_id",
                                    "use_cache",
                                    "transformers_version",
                                    "_from_model_config",
                                    "early_stopping",
                                    "length_penalty",
                                    "output_scores",
                                    "output_logits",
                                    "output_attentions",
                                    "disable_compile",
                                    "output_hidden_states",
                                    "compile_config",
                                    "renormalize_logits",
                                    "remove_invalid_values",
                                    "trust_remote_code",
                                    "return_dict_in_generate",
                                    "num_assistant_tokens",
                                    "num_assistant_tokens_schedule",
                                    "assistant_confidence_threshold",
                                    "assistant_lookbehind",
                                    "target_lookbehind"};

/// Entries that ask for nothing at this value, and are refused at another.
struct Neutral {
  const char* name;
  double value;
};
constexpr Neutral kNeutral[] = {{"num_beams", 1},
                                {"num_beam_groups", 1},
                                {"num_return_sequences", 1},
                                {"typical_p", 1},
                                {"epsilon_cutoff", 0},
                                {"eta_cutoff", 0},
                                {"guidance_scale", 1},
                                {"penalty_alpha", 0},
                                {"encoder_repetition_penalty", 1},
                                {"encoder_no_repeat_ngram_size", 0},
                                {"is_assistant", 0},
                                {"token_healing", 0},
                                {"use_mtp", 0},
                                {"diversity_penalty", 0}};

bool ignored(const std::string& name, const Setting& setting) {
  for (const char* each : kIgnored) {
    if (name == each) return true;
  }
  for (const Neutral& each : kNeutral) {
    if (name == each.name && setting.values.size() == 1 && setting.values[0] == each.value) return true;
  }
  return name == "cache_implementation" && setting.text == "hybrid";
}

class Reader {
 public:
  explicit Reader(const SettingMap& entries) : entries_(entries) {}

  const Setting* take(const char* name) {
    const auto found = entries_.find(name);
    if (found == entries_.end()) return nullptr;
    taken_.push_back(name);
    return &found->second;
  }
  void number(const char* name, double least, double most, double& out) {
    const Setting* setting = take(name);
    if (!setting) return;
    if (setting->is_number && setting->values[0] >= least && setting->values[0] <= most) {
      out = setting->values[0];
      return;
    }
    fail(name, *setting, "a number from " + shown(least) + " to " + shown(most));
  }
  void number(const char* name, double least, double most, float& out) {
    double value = out;
    number(name, least, most, value);
    out = static_cast<float>(value);
  }
  void integer(const char* name, int64_t least, int64_t& out) {
    double value = static_cast<double>(out);
    number(name, static_cast<double>(least), kMost, value);
    if (std::floor(value) != value) fail(name, *take(name), "an integer");
    out = static_cast<int64_t>(value);
  }
  void flag(const char* name, bool& out) {
    const Setting* setting = take(name);
    if (!setting) return;
    if (!setting->is_flag) return fail(name, *setting, "true or false");
    out = setting->values[0] != 0;
  }
  void tokens(const char* name, std::vector<int64_t>& out) {
    const Setting* setting = take(name);
    if (!setting) return;
    if (!setting->is_number && !setting->is_list)
      return fail(name, *setting, "one token id or a list of them");
    out.clear();
    for (double value : setting->values) out.push_back(static_cast<int64_t>(value));
  }

  Status rest() {
    for (const auto& [name, setting] : entries_) {
      if (fault_ || std::find(taken_.begin(), taken_.end(), name) != taken_.end() || ignored(name, setting))
        continue;
      fault_ = fault_of(Code::E_HOST_SETTING,
                        "'" + name + "' is " + setting.text +
                            ", which this program does not do; leave it out of the generation "
                            "config, or use Python's Session");
    }
    if (fault_) return *fault_;
    return {};
  }

 private:
  static constexpr double kMost = 1 << 30;
  static std::string shown(double value) {
    std::string text = std::to_string(value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
  }
  void fail(const char* name, const Setting& setting, const std::string& expected) {
    if (!fault_) {
      fault_ = fault_of(Code::E_HOST_SETTING,
                        "'" + std::string(name) + "' is " + setting.text + ", expected " + expected);
    }
  }

  const SettingMap& entries_;
  std::vector<std::string> taken_;
  std::optional<Fault> fault_;
};

}  // namespace

Setting setting_of(double value) {
  Setting made;
  made.is_number = true;
  made.values = {value};
  made.text = std::to_string(value);
  return made;
}

Result<Settings> Settings::of(const SettingMap& model, const SettingMap& caller) {
  SettingMap entries = model;
  for (const auto& [name, setting] : caller) entries[name] = setting;
  Settings made;
  Reader read(entries);
  constexpr double kHuge = 1e30;
  read.flag("do_sample", made.do_sample);
  read.number("temperature", 0, kHuge, made.temperature);
  read.number("repetition_penalty", 1e-30, kHuge, made.repetition_penalty);
  read.number("top_p", 0, 1, made.top_p);
  read.number("min_p", 0, 1, made.min_p);
  read.integer("top_k", 0, made.top_k);
  read.integer("no_repeat_ngram_size", 0, made.no_repeat_ngram_size);
  read.integer("min_length", 0, made.min_length);
  read.integer("min_new_tokens", 0, made.min_new_tokens);
  read.tokens("eos_token_id", made.eos);
  read.tokens("suppress_tokens", made.suppressed);
  read.tokens("begin_suppress_tokens", made.suppressed_first);
  std::vector<int64_t> pad =
      made.eos;  // transformers pads with the first of these where nothing else is said
  read.tokens("pad_token_id", pad);
  if (!pad.empty()) made.pad = pad[0];
  read.take("max_length");
  for (const char* name : {"max_new_tokens", "max_length"}) {
    if (!entries.count(name)) continue;
    read.integer(name, name == std::string("max_length") ? 0 : 1, made.most);
    made.most_by_caller = caller.count(name) > 0;
    made.most_with_prompt = name == std::string("max_length");
    break;
  }
  PYQUANT_TRY(read.rest());
  if (made.do_sample && made.temperature == 0)
    made.do_sample = false;  // all probability on the most likely token
  return made;
}

bool Settings::ends(int64_t token) const { return std::find(eos.begin(), eos.end(), token) != eos.end(); }

}  // namespace pyquant::host
