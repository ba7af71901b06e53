// SPDX-License-Identifier: Apache-2.0
#include "host/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace pyquant::host {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr double kOne = 1099511627776.0;  // 2^40, the weight of the highest score

void forbid(const std::vector<int64_t>& tokens, std::vector<float>& scores) {
  for (int64_t token : tokens) {
    if (token >= 0 && token < static_cast<int64_t>(scores.size()))
      scores[static_cast<size_t>(token)] = kNever;
  }
}

void repetition(float penalty, const std::vector<int64_t>& tokens, std::vector<float>& scores) {
  std::vector<int64_t> once = tokens;
  std::sort(once.begin(), once.end());
  once.erase(std::unique(once.begin(), once.end()), once.end());
  for (int64_t token : once) {
    if (token < 0 || token >= static_cast<int64_t>(scores.size())) continue;
    float& score = scores[static_cast<size_t>(token)];
    score = score < 0 ? score * penalty : score / penalty;
  }
}

/// Forbids what would make `size` tokens that are there already.
void ngrams(int64_t size, const std::vector<int64_t>& tokens, std::vector<float>& scores) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::vector<int64_t> banned;
  for (int64_t first = 0; first + size <= count; ++first) {
    const auto begin = tokens.begin() + first;
    if (std::equal(begin, begin + size - 1, tokens.end() - (size - 1))) banned.push_back(*(begin + size - 1));
  }
  forbid(banned, scores);
}

/// Tokens of at least this score that may come, from the least likely to the most; of equal ones, the higher
/// id first.
std::vector<size_t> ascending(const std::vector<float>& scores, float least) {
  std::vector<size_t> order;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > kNever && scores[i] >= least) order.push_back(i);
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return scores[a] != scores[b] ? scores[a] < scores[b] : a > b; });
  return order;
}

}  // namespace

void penalize(const Settings& settings, const std::vector<int64_t>& tokens, int64_t new_tokens,
              std::vector<float>& scores) {
  if (settings.repetition_penalty != 1) repetition(settings.repetition_penalty, tokens, scores);
  if (settings.no_repeat_ngram_size) ngrams(settings.no_repeat_ngram_size, tokens, scores);
  if (static_cast<int64_t>(tokens.size()) < settings.min_length || new_tokens < settings.min_new_tokens) {
    forbid(settings.eos, scores);
  }
  forbid(settings.suppressed, scores);
  if (!new_tokens) forbid(settings.suppressed_first, scores);
}

int64_t choose(const Settings& settings, std::vector<float>& scores, Random& random) {
  const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
  if (!settings.do_sample || !(scores[static_cast<size_t>(best)] > kNever)) return best;
  for (float& score : scores) score = score / settings.temperature;
  float least = kNever;
  if (const auto k = static_cast<size_t>(settings.top_k); k && k < scores.size()) {
    std::vector<float> kept = scores;
    const auto at = kept.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(kept.begin(), at, kept.end(), std::greater<float>());
    least = *at;
  }
  const std::vector<size_t> order = ascending(scores, least);
  const double highest = scores[order.back()];
  std::vector<uint64_t> weights;
  uint64_t total = 0;
  for (size_t i : order) {
    weights.push_back(static_cast<uint64_t>(std::llround(kOne * std::exp(scores[i] - highest))));
    total += weights.back();
  }
  // top_p: leave out the least likely ones that are together no more than 1 - top_p; min_p: by the highest
  // alone.
  uint64_t below = 0, all = total;
  for (size_t i = 0; i + 1 < order.size(); ++i) {
    below += weights[i];
    const bool rare =
        settings.top_p < 1 && static_cast<double>(below) <= (1 - settings.top_p) * static_cast<double>(all);
    if (!rare && !(static_cast<double>(weights[i]) < settings.min_p * kOne)) continue;
    total -= weights[i];
    weights[i] = 0;
  }
  uint64_t drawn = random.below(total);
  for (size_t i = order.size(); i-- > 0;) {
    if (drawn < weights[i]) return static_cast<int64_t>(order[i]);
    drawn -= weights[i];
  }
  return best;
}

}  // namespace pyquant::host
