// SPDX-License-Identifier: Apache-2.0
#include "host/turn.h"

#include <algorithm>

#include "host/fault.h"

namespace pyquant::host {
namespace {

Fault refused(const std::string& text) { return fault_of(Code::E_HOST_INPUT, text); }

Status require_graphs(const Manifest& manifest, size_t width, bool continues) {
  if (manifest.whole) {
    if (!continues) return {};
    return refused(
        "this bundle has the model in one graph without a cache, which a conversation needs; export with "
        "layers=\"stack\" and append_lengths=(64,)");
  }
  const bool fits = static_cast<int64_t>(width) <= manifest.prefill_lengths.back();
  if (!manifest.append_lengths.empty() || (!continues && fits)) return {};
  const std::string hint = "append_lengths=(64,), graphs that take more tokens onto a filled cache";
  if (continues)
    return refused("this bundle cannot go on with a conversation: it has no append graph; export with " +
                   hint);
  return refused(
      "the prompt has " + std::to_string(width) + " tokens, more than every prefill length of this bundle [" +
      list_text(manifest.prefill_lengths) + "]; shorten it, or export with a longer one, or with " + hint);
}

}  // namespace

Result<Turn> turn_of(const Manifest& manifest, const Request& request, const Conversation* conversation,
                     const Settings& settings) {
  const auto batch = static_cast<size_t>(manifest.batch);
  if (request.prompts.size() != batch) {
    return refused("got " + std::to_string(request.prompts.size()) +
                   " prompt(s), this bundle was exported with "
                   "batch_size=" +
                   std::to_string(batch));
  }
  const bool continues = conversation && conversation->cache;
  Turn turn;
  turn.cache = continues ? *conversation->cache : Cache::empty(manifest);
  turn.tokens = continues ? conversation->tokens : TokenRows(batch);
  size_t width = 0, longest = 0;
  for (size_t row = 0; row < batch; ++row) {
    const auto& own = request.prompts[row];
    if (own.empty()) return refused("prompt " + std::to_string(row) + " is empty; every row needs a token");
    for (int64_t id : own) {
      if (id < 0 || id > INT32_MAX) return refused("the token id " + std::to_string(id) + " is none");
    }
    turn.tokens[row].insert(turn.tokens[row].end(), own.begin(), own.end());
    longest = std::max(longest, turn.tokens[row].size());
    width = std::max(width, turn.tokens[row].size() - static_cast<size_t>(turn.cache.lengths[row]));
  }
  PYQUANT_TRY(require_graphs(manifest, width, continues));
  const int64_t used = static_cast<int64_t>(longest), room = manifest.longest - used + 1;
  if (room < 1) {
    return refused(std::to_string(used) + " tokens are more than max_seq_len " +
                   std::to_string(manifest.longest) + " of this bundle; " +
                   (continues ? "start another conversation" : "shorten the prompt") +
                   ", or export with a longer one");
  }
  turn.most = settings.most - (settings.most_with_prompt ? used : 0);
  if (!settings.most_by_caller) turn.most = std::min(turn.most, room);
  if (turn.most < 1) {
    return refused("max_new_tokens is at least 1 (max_length: more than the prompt), got " +
                   std::to_string(turn.most));
  }
  if (turn.most > room) {
    return refused("a prompt of " + std::to_string(used) +
                   " tokens and max_new_tokens=" + std::to_string(turn.most) +
                   " need a cache longer than max_seq_len " + std::to_string(manifest.longest) +
                   " of this bundle; at most " + std::to_string(room) + " new tokens fit");
  }
  turn.prompt = Prompt::empty(batch, width);
  for (size_t row = 0; row < batch; ++row) {
    const auto first = static_cast<size_t>(turn.cache.lengths[row]);
    for (size_t i = first; i < turn.tokens[row].size(); ++i) {
      turn.prompt.ids[row * width + i - first] = turn.tokens[row][i];
      turn.prompt.real[row * width + i - first] = 1;
    }
  }
  return turn;
}

std::vector<Part> parts_of(const Manifest& manifest, size_t width, bool continues) {
  std::vector<Part> found;
  for (size_t start = 0; start < width;) {
    const bool append = continues || !found.empty();
    const auto& lengths = append ? manifest.append_lengths : manifest.prefill_lengths;
    const size_t count = std::min(width - start, static_cast<size_t>(lengths.back()));
    size_t length = static_cast<size_t>(lengths.back());
    for (int64_t each : lengths) {
      if (static_cast<size_t>(each) >= count) length = std::min(length, static_cast<size_t>(each));
    }
    found.push_back({append ? "append" : "prefill", start, start + count, length});
    start += count;
  }
  return found;
}

Status check_parts(const Manifest& manifest, const std::vector<Part>& parts, const Prompt& prompt) {
  if (!manifest.together) return {};
  for (const Part& part : parts) {
    for (size_t row = 0; part.stop < prompt.width && row < prompt.batch; ++row) {
      const int64_t* runs = prompt.runs.data() + row * prompt.width;
      if (runs[part.stop] < 0 || runs[part.stop - 1] != runs[part.stop]) continue;
      return refused("the prompt has " + std::to_string(prompt.width) + " tokens and is cut at token " +
                     std::to_string(part.stop) +
                     ", within an image, whose tokens see each other; export with a "
                     "prefill length that holds the prompt up to the end of the image");
    }
  }
  return {};
}

}  // namespace pyquant::host
