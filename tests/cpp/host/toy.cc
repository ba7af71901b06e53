// SPDX-License-Identifier: Apache-2.0
#include "toy.h"

#include <cstdlib>
#include <iostream>

namespace toy {
namespace {

std::string tensor(const std::string& name, const std::string& shape, const char* dtype = "float32") {
  return R"({"name": ")" + name + R"(", "shape": [)" + shape + R"(], "dtype": ")" + dtype + R"("})";
}

/// A graph of the stack over `places`, `past` slots for each of its layers.
std::string stack(const std::string& kind, int batch, int places, bool past) {
  const std::string b = std::to_string(batch), s = std::to_string(places);
  std::string inputs = tensor("inputs_embeds", b + ", " + s + ", 1");
  const int slots[] = {past ? 2 : 0, past ? 9 : 0};
  const char* names[] = {"near", "far"};
  for (int i = 0; i < 2; ++i) {
    const std::string keys = std::to_string(slots[i] + places), end = std::string("_") + names[i];
    inputs += ", " + tensor("attention_mask" + end, b + ", 1, " + s + ", " + keys);
    inputs += ", " + tensor("cos" + end, b + ", " + s + ", 2");
    inputs += ", " + tensor("signed_sin" + end, b + ", " + s + ", 2");
    const std::string layer = std::to_string(i), kept = b + ", 1, " + std::to_string(slots[i]) + ", 2";
    if (past) inputs += ", " + tensor("past_key_" + layer, kept) + ", " + tensor("past_value_" + layer, kept);
  }
  return R"({"kind": ")" + kind + R"(", "seq_len": )" + s + R"(, "file": "g", "inputs": [)" + inputs +
         R"(], "outputs": []})";
}

}  // namespace

std::string manifest_text(const std::vector<std::pair<std::string, std::string>>& edits, int batch) {
  const std::string b = std::to_string(batch);
  std::string text =
      R"({"format": "pyquant-bundle", "version": 1, "batch_size": )" + b + R"(, "max_seq_len": 10,
    "prefill_lengths": [4], "append_lengths": [2, 3], "layers": "stack", "num_hidden_layers": 2,
    "rotary_near": {"inv_freq": [0.5], "attention_scaling": 1.0},
    "rotary_far": {"inv_freq": [0.25], "attention_scaling": 2.0},
    "mask": {"fill": -100.0, "keep": 0.0},
    "cache": {"capacity": 9, "layers": [
      {"kv_heads": 1, "head_dim": 2, "capacity": 2, "window": 3, "variant": "near"},
      {"kv_heads": 1, "head_dim": 2, "variant": "far"}]},
    "generation": {"eos_token_id": [15], "pad_token_id": 0},
    "host_data": {"version": 1, "variants": [
      {"name": "near", "mask": "attention_mask_near", "cos": "cos_near", "signed_sin": "signed_sin_near",
       "rotary": "rotary_near", "window": 3},
      {"name": "far", "mask": "attention_mask_far", "cos": "cos_far", "signed_sin": "signed_sin_far",
       "rotary": "rotary_far"}],
      "embedding": [{"kind": "token_embedding", "inputs": {"input_ids": "ids"}, "outputs": {"inputs_embeds": "hidden"}}],
      "positions": {"rule": "tokens"}},
    "graphs": {
      "token_embedding": {"kind": "token_embedding", "file": "g", "inputs": [
        {"name": "input_ids", "shape": [)" +
      b + R"(, 1], "shape_signature": [)" + b + R"(, -1], "dtype": "int32", "range": [0, 15]}],
        "outputs": []},
      "prefill_s4": )" +
      stack("prefill", batch, 4, false) + R"(, "append_s2": )" + stack("append", batch, 2, true) +
      R"(, "append_s3": )" + stack("append", batch, 3, true) + R"(, "decode": )" +
      stack("decode", batch, 1, true) + R"(,
      "lm_head": {"kind": "lm_head", "file": "g", "inputs": [)" +
      tensor("hidden_states", b + ", 1, 1") + R"(], "outputs": []}}})";
  for (const auto& [from, to] : edits) {
    const size_t at = text.find(from);
    if (at == std::string::npos) {
      std::cerr << "the manifest has no " << from << "\n";
      std::abort();
    }
    text.replace(at, from.size(), to);
  }
  return text;
}

Manifest manifest(int batch) {
  auto parsed = parse_manifest(manifest_text({}, batch), "manifest.json");
  return std::move(parsed).value();
}

Tensor Echo::given(Tensor real) const {
  if (!stored_) return real;
  Tensor made;
  made.type = Type::Int16;
  made.shape = real.shape;
  quantize(real, Type::Int16, made.grid, false, made.bytes);
  return made;
}

Result<Outputs> Echo::run(const std::string& graph, const Inputs& inputs) {
  calls.push_back(graph);
  auto& own = seen[graph];
  own.clear();
  for (const auto& [name, tensor] : inputs) own[name] = is_real(tensor->type) ? tensor->as_floats() : *tensor;
  Outputs out;
  const char* first = graph == "token_embedding" ? "input_ids"
                      : graph == "lm_head"       ? "hidden_states"
                                                 : "inputs_embeds";
  const bool ids_first = graph == "token_embedding";
  if (own[first].shape.size() != (ids_first ? 2u : 3u) || (own[first].type == Type::Int32) != ids_first) {
    return Fault{Code::E_RUN_INPUT, "the toy takes another input", graph};
  }
  if (graph == "token_embedding") {
    const Tensor& ids = own["input_ids"];
    Tensor rows = Tensor::zeros(Type::Float32, {ids.shape[0], ids.shape[1], 1});
    for (int64_t i = 0; i < ids.count(); ++i) rows.floats()[i] = static_cast<float>(ids.ints()[i]);
    out["inputs_embeds"] = given(rows);
    return out;
  }
  if (graph == "lm_head") {
    const Tensor& hidden = own["hidden_states"];
    out["logits"] = Tensor::zeros(Type::Float32, {hidden.shape[0], 1, kVocabulary});
    for (int64_t row = 0; row < hidden.shape[0]; ++row) {
      const auto next = (static_cast<int64_t>(hidden.floats()[row]) + 1) % kVocabulary;
      out["logits"].floats()[row * kVocabulary + next] = 5;
    }
    return out;
  }
  const Tensor& hidden = own["inputs_embeds"];
  Tensor keys = Tensor::zeros(Type::Float32, {hidden.shape[0], 1, hidden.shape[1], 2}), values = keys;
  for (int64_t i = 0; i < keys.count(); ++i) {
    keys.floats()[i] = hidden.floats()[i / 2];
    values.floats()[i] = -hidden.floats()[i / 2];
  }
  for (const char* layer : {"0", "1"}) {
    out[std::string("new_key_") + layer] = given(keys);
    out[std::string("new_value_") + layer] = given(values);
  }
  out["hidden_states"] = given(hidden);
  return out;
}

Request request(TokenRows prompts, int64_t new_tokens) {
  Request made;
  made.prompts = std::move(prompts);
  made.settings["max_new_tokens"] = setting_of(static_cast<double>(new_tokens));
  return made;
}

}  // namespace toy
