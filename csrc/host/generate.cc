// SPDX-License-Identifier: Apache-2.0
#include "host/generate.h"

#include <chrono>
#include <cmath>

#include "host/fault.h"
#include "host/positions.h"
#include "host/sampler.h"
#include "host/stack.h"
#include "host/turn.h"
#include "host/whole.h"

namespace pyquant::host {
namespace {

/// What gives logits, one call after another.
struct Logits {
  std::function<Result<Tensor>()> first;
  /// One more token of each row; rows that are not `going` got padding.
  std::function<Result<Tensor>(const std::vector<int64_t>&, const std::vector<uint8_t>&)> next;
};

/// Hidden states (batch, 1, width) of each row's last token, from parts of a prompt.
void take_last(const Tensor& hidden, const std::vector<int64_t>& counts, const Part& part, Tensor& last) {
  const size_t line = static_cast<size_t>(hidden.shape[2]) * type_size(hidden.type);
  if (last.bytes.empty()) last = hidden.zeros_like({hidden.shape[0], 1, hidden.shape[2]});
  if (!last.is_like(hidden)) {  // each graph has a grid of its own
    last = last.as_floats();
    if (hidden.type != Type::Float32) return take_last(hidden.as_floats(), counts, part, last);
  }
  for (size_t row = 0; row < counts.size(); ++row) {
    const auto at = static_cast<size_t>(counts[row] - 1);
    if (at < part.start || at >= part.stop) continue;
    const size_t place = row * static_cast<size_t>(hidden.shape[1]) + at - part.start;
    std::memcpy(last.bytes.data() + row * line, hidden.bytes.data() + place * line, line);
  }
}

Result<Tensor> prefill(const Stack& stack, const std::vector<Part>& parts, const TowerRows& rows,
                       Turn& turn) {
  Tensor last;
  const std::vector<int64_t> counts = turn.prompt.counts();
  for (const Part& part : parts) {
    const Prompt own = turn.prompt.part(part.start, part.stop, part.length);
    PYQUANT_TRY_ASSIGN(const Tensor hidden, stack.through(part.kind, own, rows, turn.cache));
    take_last(hidden, counts, part, last);
  }
  turn.cache.deltas = turn.prompt.deltas;
  return stack.logits(last);
}

Result<Tensor> decode(const Stack& stack, const std::vector<int64_t>& tokens,
                      const std::vector<uint8_t>& going, Turn& turn) {
  Prompt prompt = Prompt::empty(tokens.size(), 1);
  prompt.ids = tokens;
  prompt.real = going;
  prompt.deltas = turn.cache.deltas;
  for (size_t i = 0; i < prompt.positions.size(); ++i) {
    const size_t row = i % tokens.size();
    prompt.positions[i] = turn.cache.lengths[row] + turn.cache.deltas[row];
  }
  PYQUANT_TRY_ASSIGN(const Tensor hidden, stack.through("decode", prompt, {}, turn.cache));
  return stack.logits(hidden);
}

/// The loop over tokens; transformers' own, for what Settings knows.
Result<Answer> answer(const Settings& settings, uint64_t seed, const Logits& logits, Turn& turn) {
  const auto began = std::chrono::steady_clock::now();
  const auto since = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  };
  const size_t batch = turn.tokens.size();
  Answer made{TokenRows(batch), std::vector<bool>(batch, false), {}};
  std::vector<Random> random;
  for (size_t row = 0; row < batch; ++row) random.emplace_back(seed, row);
  std::vector<uint8_t> going(batch, 1);
  PYQUANT_TRY_ASSIGN(Tensor scores, logits.first());
  for (int64_t count = 0;;) {
    std::vector<int64_t> next(batch, settings.pad);
    bool any = false;
    const auto vocabulary = static_cast<size_t>(scores.shape[1]);
    for (size_t row = 0; row < batch; ++row) {
      if (!going[row]) continue;
      const float* first = scores.floats() + row * vocabulary;
      std::vector<float> own(first, first + vocabulary);
      for (float score : own) {
        if (std::isnan(score))
          return fault_of(Code::E_MANIFEST, "graph 'lm_head' makes logits that are not numbers");
      }
      penalize(settings, turn.tokens[row], count, own);
      next[row] = choose(settings, own, random[row]);
      turn.tokens[row].push_back(next[row]);
      made.tokens[row].push_back(next[row]);
      made.ended[row] = settings.ends(next[row]);
      going[row] = !made.ended[row];
      any = any || going[row];
    }
    if (!count) made.seconds.push_back(since());
    if (++count >= turn.most || !any) break;
    PYQUANT_TRY_ASSIGN(scores, logits.next(next, going));
  }
  made.seconds.push_back(since());
  return made;
}

}  // namespace

struct Generator::Parts {
  Parts(Manifest given, Runtime& runtime)
      : manifest(std::move(given)), calls(manifest, runtime), stack(manifest, calls) {}
  Manifest manifest;
  Calls calls;
  Stack stack;
};

Generator::Generator(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Generator::~Generator() = default;
const Manifest& Generator::manifest() const { return parts_->manifest; }

Result<std::unique_ptr<Generator>> Generator::create(Manifest manifest, Runtime& runtime,
                                                     const std::string& folder) {
  std::vector<std::string> needed{"prefill", "decode", "lm_head"};
  if (manifest.whole) needed = {"model", "lm_head"};
  for (const std::string& kind : needed) {
    bool found = false;
    for (const auto& [name, graph] : manifest.graphs) found = found || graph.kind == kind;
    if (found) continue;
    return fault_of(Code::E_MANIFEST, "the bundle has no " + kind +
                                          " graph, so it cannot generate; export a model with "
                                          "its head");
  }
  auto parts = std::make_unique<Parts>(std::move(manifest), runtime);
  PYQUANT_TRY(parts->calls.open_tables(folder));
  return std::unique_ptr<Generator>(new Generator(std::move(parts)));
}

Result<Answer> Generator::generate(const Request& request, Conversation* conversation) const {
  const Manifest& manifest = parts_->manifest;
  const Stack& stack = parts_->stack;
  PYQUANT_TRY_ASSIGN(const Settings settings, Settings::of(manifest.generation, request.settings));
  PYQUANT_TRY_ASSIGN(Turn turn, turn_of(manifest, request, conversation, settings));
  const bool continues = conversation && conversation->cache;
  mark_media(manifest, turn.prompt);
  PYQUANT_TRY(place(manifest, request.media, turn.cache.lengths, turn.cache.deltas, turn.prompt));
  Logits logits;
  std::unique_ptr<WholeModel> whole;
  std::vector<Part> parts;
  TowerRows rows;
  if (manifest.whole) {
    PYQUANT_TRY_ASSIGN(whole, WholeModel::of(manifest, parts_->calls, stack, request.media, turn.prompt));
    logits.first = [&] { return whole->logits(nullptr); };
    logits.next = [&](const std::vector<int64_t>& tokens, const std::vector<uint8_t>&) {
      return whole->logits(&tokens);
    };
  } else {
    parts = parts_of(manifest, turn.prompt.width, continues);
    PYQUANT_TRY_ASSIGN(rows, run_towers(manifest, parts_->calls, request.media));
    PYQUANT_TRY(mark_rows(manifest, rows.counts, turn.prompt));
    PYQUANT_TRY(check_parts(manifest, parts, turn.prompt));
    logits.first = [&] { return prefill(stack, parts, rows, turn); };
    logits.next = [&](const std::vector<int64_t>& tokens, const std::vector<uint8_t>& going) {
      return decode(stack, tokens, going, turn);
    };
  }
  PYQUANT_TRY_ASSIGN(Answer made, answer(settings, request.seed, logits, turn));
  if (conversation && !manifest.whole) *conversation = {std::move(turn.tokens), std::move(turn.cache)};
  return made;
}

}  // namespace pyquant::host
