// SPDX-License-Identifier: Apache-2.0
// Choosing tokens: frequencies follow the probabilities, what top_k, top_p and min_p leave out never comes,
// penalties, and settings that are refused by name. The stream of a seed is written out, so that it stays
// what it is.
#include "host/sampler.h"

#include <cmath>
#include <limits>

#include "check.h"

using namespace pyquant;        // NOLINT
using namespace pyquant::host;  // NOLINT

namespace {

Settings sampling() {
  Settings settings;
  settings.do_sample = true;
  settings.top_k = 0;
  return settings;
}

std::vector<double> frequencies(const Settings& settings, const std::vector<float>& scores, int draws) {
  std::vector<double> counts(scores.size(), 0);
  Random random(7);
  for (int i = 0; i < draws; ++i) {
    std::vector<float> own = scores;
    counts[static_cast<size_t>(choose(settings, own, random))] += 1.0 / draws;
  }
  return counts;
}

}  // namespace

TEST(a_seed_is_a_stream) {
  Random random(42), again(42), row(42, 1);
  const uint64_t first = random.next();
  CHECK_EQ(first, again.next());
  CHECK(first != row.next());
  CHECK_EQ(first, uint64_t{8988660440807181120u});
  for (uint64_t bound : {uint64_t{1}, uint64_t{3}, uint64_t{1} << 63}) {
    for (int i = 0; i < 100; ++i) CHECK(random.below(bound) < bound);
  }
}

TEST(frequencies_follow_the_scores) {
  const std::vector<float> scores = {0.0f, std::log(2.0f), std::log(5.0f), -40.0f};
  const auto seen = frequencies(sampling(), scores, 80000);
  CHECK_MSG(
      std::abs(seen[0] - 0.125) < 0.01 && std::abs(seen[1] - 0.25) < 0.01 && std::abs(seen[2] - 0.625) < 0.01,
      std::to_string(seen[0]) + " " + std::to_string(seen[1]) + " " + std::to_string(seen[2]));
  CHECK_EQ(seen[3], 0.0);
  Settings hot = sampling();
  hot.temperature = 2;  // square roots of the probabilities
  const auto flat = frequencies(hot, scores, 80000);
  const double total = 1 + std::sqrt(2.0) + std::sqrt(5.0);
  CHECK(std::abs(flat[2] - std::sqrt(5.0) / total) < 0.01);
}

TEST(filters_leave_out_the_unlikely) {
  const std::vector<float> scores = {std::log(0.1f), std::log(0.2f), std::log(0.3f), std::log(0.4f)};
  Settings k = sampling(), p = sampling(), m = sampling();
  k.top_k = 2;
  p.top_p = 0.65;  // 0.3 and 0.4 are the least that reach it
  m.min_p = 0.45;  // of 0.4
  CHECK(std::abs(frequencies(k, scores, 40000)[2] - 3.0 / 7) < 0.01);
  CHECK_EQ(frequencies(k, scores, 4000)[1], 0.0);
  CHECK_EQ(frequencies(p, scores, 4000)[1], 0.0);
  CHECK(frequencies(p, scores, 4000)[2] > 0.3);
  CHECK(frequencies(m, scores, 4000)[1] > 0.1);
  CHECK_EQ(frequencies(m, scores, 4000)[0], 0.0);
  p.top_p = 0;
  CHECK(frequencies(p, scores, 1000)[3] > 0.999);
}

TEST(the_most_likely_token_is_the_first_of_equal_ones) {
  Settings greedy;
  Random random(1);
  std::vector<float> scores = {1, 3, 3, -std::numeric_limits<float>::infinity()};
  CHECK_EQ(choose(greedy, scores, random), int64_t{1});
}

TEST(penalties_are_those_of_transformers) {
  Settings settings;
  settings.repetition_penalty = 2;
  settings.no_repeat_ngram_size = 2;
  settings.min_new_tokens = 3;
  settings.eos = {4};
  settings.suppressed_first = {0};
  std::vector<float> scores = {1, 4, -3, 8, 9, 2};
  penalize(settings, {1, 2, 3, 1}, 0, scores);
  const float never = -std::numeric_limits<float>::infinity();
  CHECK(scores == std::vector<float>({never, 2, never, 4, never, 2}));  // 1 was followed by 2
  scores = {1, 4, -3, 8, 9, 2};
  penalize(settings, {2, 2}, 3, scores);
  CHECK(scores == std::vector<float>({1, 4, never, 8, 9, 2}));
}

TEST(settings_are_known_ignored_or_refused_by_name) {
  SettingMap model;
  model["top_k"] = setting_of(5);
  model["bos_token_id"] = setting_of(1);
  model["num_beams"] = setting_of(1);
  model["max_length"] = setting_of(64);
  auto read = Settings::of(model, {{"top_k", setting_of(7)}});
  CHECK(read.ok() && read.value().top_k == 7 && read.value().most == 64 && read.value().most_with_prompt &&
        !read.value().most_by_caller);
  model["num_beams"] = setting_of(4);
  const auto beams = Settings::of(model, {});
  CHECK_MSG(!beams.ok() && beams.fault().text().find("'num_beams' is 4") != std::string::npos, "beams");
  for (const auto& [name, value] :
       {std::pair<const char*, double>{"top_p", 1.5}, {"top_k", 2.5}, {"frobnicate", 0}}) {
    const auto refused = Settings::of({}, {{name, setting_of(value)}});
    CHECK_MSG(!refused.ok() && refused.fault().text().find(name) != std::string::npos, name);
    if (!refused.ok()) CHECK_EQ(std::string(code_name(refused.fault().code)), "E_HOST_SETTING");
  }
}

TEST(a_seed_chooses_these_tokens_on_every_machine) {
  Settings settings = sampling();
  settings.temperature = 0.8f;
  settings.top_k = 12;
  settings.top_p = 0.95;
  std::string seen;
  Random random(2026, 3);
  for (int i = 0; i < 12; ++i) {
    std::vector<float> scores;
    for (int j = 0; j < 40; ++j) scores.push_back(static_cast<float>((j * 7 + i) % 40) * 0.21f);
    seen += std::to_string(choose(settings, scores, random)) + " ";
  }
  CHECK_EQ(seen, "22 34 5 28 39 27 38 10 21 10 21 9 ");
}
