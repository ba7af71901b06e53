// SPDX-License-Identifier: Apache-2.0
#include "host/stack.h"

#include <algorithm>

#include "host/fault.h"
#include "host/masks.h"
#include "host/rotary.h"

namespace pyquant::host {
namespace {

constexpr double kMostElements = 4e9;
constexpr const char* kHidden = "hidden";
constexpr const char* kIds = "ids";

Fault missing(const std::string& kind, int64_t places) {
  return fault_of(Code::E_MANIFEST,
                  "the bundle has no graph of kind '" + kind + "' for " + std::to_string(places) + " places");
}

void give(const TensorSpec& spec, const std::string& name, const Tensor& tensor, Inputs& inputs) {
  if (spec.name == name) inputs[name] = &tensor;
}

/// "{layer}" in a name replaced by a number.
std::string of_layer(const std::string& name, int64_t layer) {
  const size_t at = name.find("{layer}");
  return at == std::string::npos ? name : name.substr(0, at) + std::to_string(layer) + name.substr(at + 7);
}

}  // namespace

Tensor Stack::ids(const Prompt& prompt) const {
  std::vector<int64_t> found = prompt.ids;
  for (int64_t& id : found) {
    for (const Media& media : manifest_.media) {
      if (manifest_.placeholder_id && id == media.token_id) id = *manifest_.placeholder_id;
    }
  }
  return int_tensor(found, {static_cast<int64_t>(prompt.batch), static_cast<int64_t>(prompt.width)});
}

Result<Tables> Stack::tables(const Prompt& prompt, const Cache& cache, bool past,
                             const std::map<std::string, int64_t>& bands) const {
  Tables found;
  for (size_t i = 0; i < manifest_.variants.size(); ++i) {
    const Variant& variant = manifest_.variants[i];
    const auto band = bands.find(variant.mask);
    const int64_t block = band == bands.end() ? 0 : band->second;
    const double keys =
        static_cast<double>(block ? 2 * block : variant.slots + static_cast<int64_t>(prompt.width));
    const auto channels = static_cast<double>(2 * variant.rotary.inv_freq.size());
    if (std::max(keys, channels) * static_cast<double>(prompt.ids.size()) > kMostElements) {
      return fault_of(Code::E_MANIFEST, "masks or rotary tables of " + std::to_string(prompt.width) +
                                            " places are larger than any memory");
    }
    found[variant.mask] = mask_of(manifest_, i, prompt, cache, past, block);
    RotaryTensors rotary = rotary_tables(variant.rotary, prompt);
    found[variant.cos] = std::move(rotary.cos);
    found[variant.signed_sin] = std::move(rotary.signed_sin);
  }
  return found;
}

Status Stack::step(const Step& step, const Prompt& prompt, const TowerRows& rows, Values& values) const {
  const auto places = static_cast<int64_t>(prompt.width);
  if (step.joins() && !prompt.has_rows()) {
    for (const std::string& name : step.zeros)
      values[name] = Tensor::zeros(Type::Float32, values[kHidden].shape);
    return {};
  }
  if (step.inputs.size() == 1 && step.outputs.size() == 1 && step.inputs[0].second == kIds) {
    PYQUANT_TRY_ASSIGN(values[step.outputs[0].second],
                       calls_.lookup(step.kind, step.inputs[0].first, step.outputs[0].first, values[kIds]));
    return {};
  }
  const Graph* graph = manifest_.find(step.kind, places);
  if (!graph) return missing(step.kind, places);
  Inputs inputs;
  for (const auto& [input, value] : step.inputs) {
    const auto found = values.find(value);
    if (found == values.end()) {
      return fault_of(Code::E_MANIFEST, "host_data.embedding: '" + step.kind + "' takes the value '" + value +
                                            "', which no step before it makes");
    }
    inputs[input] = &found->second;
  }
  Joined joined;
  if (step.joins()) {
    joined = join(step, *graph, rows, prompt, values[kHidden].shape.back());
    for (const auto& [name, tensor] : joined.inputs) inputs[name] = &tensor;
    inputs[step.index] = &joined.index;
  }
  std::vector<std::string> outputs;
  for (const auto& [output, value] : step.outputs) outputs.push_back(output);
  PYQUANT_TRY_ASSIGN(Outputs made, calls_.run(*graph, inputs, outputs));
  for (const auto& [output, value] : step.outputs) values[value] = std::move(made[output]);
  return {};
}

Result<Stack::Values> Stack::embedded(const Prompt& prompt, const TowerRows& rows) const {
  Values values;
  values[kIds] = ids(prompt);
  for (const Step& each : manifest_.embedding) PYQUANT_TRY(step(each, prompt, rows, values));
  const auto hidden = values.find(kHidden);
  if (hidden == values.end() || hidden->second.shape.size() != 3) {
    return fault_of(Code::E_MANIFEST, "host_data.embedding makes no value 'hidden' of three dimensions");
  }
  return values;
}

Result<Tensor> Stack::through(const std::string& kind, const Prompt& prompt, const TowerRows& rows,
                              Cache& cache) const {
  const auto places = static_cast<int64_t>(prompt.width);
  const bool past = kind != "prefill";
  PYQUANT_TRY_ASSIGN(Values values, embedded(prompt, rows));
  const Graph* graph = manifest_.find(kind, places, manifest_.per_layer ? 0 : -1);
  if (!graph) return missing(kind, places);
  std::map<std::string, int64_t> bands = graph->bands;
  for (size_t i = 0; manifest_.per_layer && i < manifest_.layers.size(); ++i) {
    const Graph* own = manifest_.find(kind, places, static_cast<int64_t>(i));
    if (!own) return missing(kind + "', layer " + std::to_string(i) + ", '", places);
    bands.insert(own->bands.begin(), own->bands.end());
  }
  PYQUANT_TRY_ASSIGN(const Tables made_tables, tables(prompt, cache, past, bands));
  std::vector<KeyValue> made(manifest_.layers.size());
  PYQUANT_TRY_ASSIGN(Tensor hidden, manifest_.per_layer
                                        ? layer_by_layer(kind, places, values, made_tables, past, cache, made)
                                        : whole(*graph, values, made_tables, past, cache, made));
  if (hidden.shape.size() != 3 || hidden.shape[0] != manifest_.batch || hidden.shape[1] != places ||
      !is_real(hidden.type)) {
    return fault_of(Code::E_MANIFEST, "the graph for " + std::to_string(places) + " places of kind '" + kind +
                                          "' makes hidden states " + shape_text(hidden.shape));
  }
  const std::vector<int64_t> counts = prompt.counts();
  for (size_t i = 0; i < made.size(); ++i) {
    if (manifest_.layers[i].shares >= 0 || !manifest_.layers[i].slots) continue;
    PYQUANT_TRY(cache.write(cache.layers[i].keys, made[i].keys, counts));
    PYQUANT_TRY(cache.write(cache.layers[i].values, made[i].values, counts));
  }
  for (size_t row = 0; row < counts.size(); ++row) cache.lengths[row] += counts[row];
  return hidden;
}

Result<Tensor> Stack::whole(const Graph& graph, Values& values, const Tables& tables, bool past,
                            const Cache& cache, std::vector<KeyValue>& made) const {
  Inputs inputs;
  for (const TensorSpec& spec : graph.inputs) {
    if (const auto found = tables.find(spec.name); found != tables.end()) inputs[spec.name] = &found->second;
    if (const auto found = values.find(spec.name); found != values.end()) inputs[spec.name] = &found->second;
    give(spec, "inputs_embeds", values[kHidden], inputs);
    for (size_t i = 0; past && i < made.size(); ++i) {
      const std::string end = "_" + std::to_string(i);
      give(spec, "past_key" + end, cache.layers[i].keys, inputs);
      give(spec, "past_value" + end, cache.layers[i].values, inputs);
    }
  }
  std::vector<std::string> outputs{"hidden_states"};
  for (size_t i = 0; i < made.size(); ++i) {
    if (manifest_.layers[i].shares >= 0) continue;
    outputs.push_back("new_key_" + std::to_string(i));
    outputs.push_back("new_value_" + std::to_string(i));
  }
  PYQUANT_TRY_ASSIGN(Outputs out, calls_.run(graph, inputs, outputs));
  for (size_t i = 0; i < made.size(); ++i) {
    if (manifest_.layers[i].shares >= 0) continue;
    made[i] = {std::move(out["new_key_" + std::to_string(i)]),
               std::move(out["new_value_" + std::to_string(i)])};
  }
  return std::move(out["hidden_states"]);
}

Result<Tensor> Stack::layer_by_layer(const std::string& kind, int64_t places, Values& values,
                                     const Tables& tables, bool past, const Cache& cache,
                                     std::vector<KeyValue>& made) const {
  Tensor hidden = std::move(values[kHidden]);
  for (size_t i = 0; i < made.size(); ++i) {
    const Layer& layer = manifest_.layers[i];
    const Graph& graph = *manifest_.find(kind, places, static_cast<int64_t>(i));
    std::map<std::string, Tensor> own;  // made for this layer
    if (layer.shares >= 0) {
      const auto source = static_cast<size_t>(layer.shares);
      const LayerCache& kept = cache.layers[source];
      const bool has_past = past && manifest_.layers[source].slots;
      own["shared_key"] = has_past ? joined({&kept.keys, &made[source].keys}, 2) : made[source].keys;
      own["shared_value"] = has_past ? joined({&kept.values, &made[source].values}, 2) : made[source].values;
    }
    for (const LayerInput& rule : manifest_.layer_inputs) {
      const auto value = values.find(of_layer(rule.value, static_cast<int64_t>(i)));
      if (!graph.input(rule.input) || value == values.end()) continue;
      const auto axis = static_cast<size_t>(rule.axis);
      const bool parts = rule.axis >= 0 && axis < value->second.shape.size() &&
                         static_cast<int64_t>(i) < value->second.shape[axis];
      if (rule.axis >= 0 && !parts) {
        return fault_of(Code::E_MANIFEST, "host_data.layer_inputs: '" + rule.value + "' of " +
                                              shape_text(value->second.shape) + " has no part for layer " +
                                              std::to_string(i));
      }
      own[rule.input] = parts ? sliced(value->second, axis, static_cast<int64_t>(i)) : value->second;
    }
    Inputs inputs;
    for (const TensorSpec& spec : graph.inputs) {
      if (const auto found = tables.find(spec.name); found != tables.end())
        inputs[spec.name] = &found->second;
      if (const auto found = own.find(spec.name); found != own.end()) inputs[spec.name] = &found->second;
      give(spec, "hidden_states", hidden, inputs);
      if (!past) continue;
      give(spec, "past_key", cache.layers[i].keys, inputs);
      give(spec, "past_value", cache.layers[i].values, inputs);
    }
    std::vector<std::string> outputs{"hidden_states_out"};
    if (layer.shares < 0) outputs.insert(outputs.end(), {"new_key", "new_value"});
    PYQUANT_TRY_ASSIGN(Outputs out, calls_.run(graph, inputs, outputs));
    hidden = std::move(out["hidden_states_out"]);
    if (layer.shares < 0) made[i] = {std::move(out["new_key"]), std::move(out["new_value"])};
  }
  return hidden;
}

Result<Tensor> Stack::logits(const Tensor& hidden) const {
  const Graph* head = manifest_.find("lm_head", hidden.shape[1]);
  for (const auto& [name, graph] : manifest_.graphs) {
    if (!head && graph.kind == "lm_head") head = &graph;
  }
  if (!head) return missing("lm_head", 1);
  PYQUANT_TRY_ASSIGN(Outputs out, calls_.run(*head, {{"hidden_states", &hidden}}, {"logits"}));
  Tensor& logits = out["logits"];
  if (logits.shape.size() != 3 || logits.shape[1] != 1 || logits.shape[0] != manifest_.batch ||
      !is_real(logits.type)) {
    return fault_of(Code::E_MANIFEST, "graph 'lm_head' makes logits " + shape_text(logits.shape) +
                                          ", expected [" + std::to_string(manifest_.batch) +
                                          ", 1, vocabulary]");
  }
  logits.shape.erase(logits.shape.begin() + 1);
  return logits.as_floats();
}

}  // namespace pyquant::host
