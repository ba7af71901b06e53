// SPDX-License-Identifier: Apache-2.0
// The entries that every bundle has: graphs, lengths, cache, rotary tables. `host_data` is manifest_host.cc.
#include "host/manifest.h"

#include <algorithm>

#include "host/fields.h"
#include "host/manifest_host.h"

namespace pyquant::host {
namespace {

constexpr double kMostElements = 4e9;   // of one tensor
constexpr int64_t kMostSize = 1 << 20;  // of heads, channels, slots, places, and sides of images

TensorSpec tensor_spec(const Field& field) {
  TensorSpec spec;
  spec.name = field["name"].text();
  const std::string dtype = field["dtype"].text();
  const bool plain = !field["quant"].present();
  if (plain && dtype == "int32") spec.type = Type::Int32;
  if (plain && dtype == "int64") spec.type = Type::Int64;
  if (plain && dtype == "bool") spec.type = Type::Bool;
  const Field open = field["shape_signature"];
  spec.shape = (open.present() ? open : field["shape"]).integers(-1);
  double elements = 1;
  for (int64_t size : spec.shape) elements *= size < 1 ? 1.0 : static_cast<double>(size);
  if (elements > kMostElements)
    field["shape"].fail("is " + shape_text(spec.shape) + ", more than any tensor has");
  if (const Field range = field["range"]; range.present()) {
    const auto ends = range.integers(INT32_MIN);
    if (ends.size() == 2) spec.range = {ends[0], ends[1]};
    if (ends.size() != 2) range.fail("has " + std::to_string(ends.size()) + " values, expected 2");
  }
  return spec;
}

std::optional<std::pair<int64_t, int64_t>> part_of(const Field& field) {
  if (!field.present()) return std::nullopt;
  const auto ends = field.integers(0);
  if (ends.size() == 2 && ends[0] < ends[1]) return std::make_pair(ends[0], ends[1]);
  field.fail("is no pair of a first and a later place");
  return std::nullopt;
}

FileFacts facts_of(const Field& field) {
  return {field["bytes"].integer_or(-1, 0), field["sha256"].text_or("")};
}

Graph graph_of(const std::string& name, const Field& field) {
  Graph graph;
  graph.name = name;
  graph.kind = field["kind"].text_or("");
  graph.file = field["file"].text_or("");
  graph.signature = field["signature"].text_or("");
  graph.facts = facts_of(field);
  graph.seq_len = field["seq_len"].integer_or(-1, 1);
  graph.layer = field["layer"].integer_or(-1, 0);
  for (const Field& item : field["inputs"].items()) graph.inputs.push_back(tensor_spec(item));
  for (const Field& item : field["outputs"].items()) graph.outputs.push_back(tensor_spec(item));
  if (const Field bands = field["bands"]; bands.present()) {
    for (const auto& [mask, block] : bands.entries()) graph.bands[mask] = block.integer(1, kMostSize);
  }
  if (const Field grids = field["grids"]; grids.present()) {
    for (const Field& grid : grids.items()) graph.grids.push_back(grid.integers(1, kMostSize));
  }
  if (field["shape"].present()) graph.shape = field["shape"].integers(1, kMostSize);
  graph.images = field["images"].integer_or(1, 1);
  graph.frames = field["frames"].present() ? field["frames"].integer(1, kMostSize) : 0;
  graph.columns = part_of(field["layers"]);
  graph.rows = part_of(field["rows"]);
  return graph;
}

Table table_of(const std::string& name, const Field& field) {
  Table table;
  table.name = name;
  table.file = field["file"].text();
  table.numbers = field["numbers"].text();
  table.output = field["output"].text();
  table.rows = field["rows"].integer(1);
  table.width = field["width"].integer(1);
  table.factor = field["factor"].number();
  return table;
}

void layers_of(const Field& root, Manifest& manifest) {
  const Field cache = root["cache"];
  if (!cache.present()) return;  // the whole model in one graph
  const int64_t capacity = cache["capacity"].integer(0, kMostSize);
  for (const Field& field : cache["layers"].items()) {
    Layer layer;
    layer.kv_heads = field["kv_heads"].integer(1, kMostSize);
    layer.head_dim = field["head_dim"].integer(1, kMostSize);
    layer.shares = field["shares"].integer_or(-1, 0);
    const Field own = field["capacity"];
    layer.slots = layer.shares >= 0 ? 0 : own.present() ? own.integer(0, kMostSize) : capacity;
    const double elements = static_cast<double>(layer.kv_heads) * static_cast<double>(layer.head_dim) *
                            static_cast<double>(layer.slots) * static_cast<double>(manifest.batch);
    if (elements > kMostElements) field.fail("has a cache that is larger than any memory");
    const std::string name = field["variant"].text_or("");
    while (layer.variant < manifest.variants.size() && manifest.variants[layer.variant].name != name) {
      ++layer.variant;
    }
    if (layer.variant == manifest.variants.size()) {
      field.fail("is of variant '" + name + "', which host_data.variants does not have");
      return;
    }
    Variant& variant = manifest.variants[layer.variant];
    if (layer.shares < 0) variant.slots = layer.slots;
    const bool found = layer.shares < static_cast<int64_t>(manifest.layers.size());
    if (layer.shares >= 0 && (!found || manifest.layers[static_cast<size_t>(layer.shares)].shares >= 0)) {
      field["shares"].fail("is " + std::to_string(layer.shares) +
                           ", expected an earlier layer with keys of its own");
    }
    manifest.layers.push_back(layer);
  }
  const auto layers = static_cast<int64_t>(manifest.layers.size());
  if (root["num_hidden_layers"].integer_or(layers, 1) != layers) {
    cache["layers"].fail("has " + std::to_string(layers) + " layers, num_hidden_layers says another number");
  }
}

std::vector<int64_t> lengths_of(const Field& field, bool needed) {
  if (!needed && !field.present()) return {};
  auto found = field.integers(1, kMostSize);
  std::sort(found.begin(), found.end());
  if (needed && found.empty()) field.fail("is empty, expected at least one length");
  return found;
}

void setting_of(const Field& field, Setting& setting) {
  using circle::json::Kind;
  const circle::json::Value& value = *field.value();
  setting.text = value.kind == Kind::Number || value.kind == Kind::String ? value.text
                 : value.kind == Kind::Bool ? (value.boolean ? "true" : "false")
                                            : circle::json::kind_name(value.kind);
  setting.is_number = value.kind == Kind::Number;
  setting.is_flag = value.kind == Kind::Bool;
  if (setting.is_flag) setting.values = {value.boolean ? 1.0 : 0.0};
  std::vector<const circle::json::Value*> numbers;
  if (setting.is_number) numbers.push_back(&value);
  setting.is_list = value.kind == Kind::Array;
  for (const auto& item : value.items) numbers.push_back(&item);
  for (const auto* number : numbers) {
    if (number->kind != Kind::Number) setting.is_list = false;
    setting.values.push_back(number->kind == Kind::Number ? std::strtod(number->text.c_str(), nullptr) : 0.0);
  }
}

Status read(const Field& root, Fields& fields, Manifest& manifest) {
  if (root["format"].text() != "pyquant-bundle" || root["version"].integer(1, 1) != 1) {
    root["format"].fail("is no manifest of a bundle that this program knows (pyquant-bundle, version 1)");
  }
  PYQUANT_TRY(fields.status());
  for (const auto& [name, field] : root["graphs"].entries()) manifest.graphs[name] = graph_of(name, field);
  if (const Field tables = root["tables"]; tables.present()) {
    for (const auto& [name, field] : tables.entries()) manifest.tables.push_back(table_of(name, field));
  }
  if (const Field files = root["files"]; files.present()) {
    for (const auto& [name, field] : files.entries()) manifest.files[name] = facts_of(field);
  }
  manifest.batch = root["batch_size"].integer(1, kMostSize);
  manifest.longest = root["max_seq_len"].integer(1, kMostSize);
  manifest.prefill_lengths = lengths_of(root["prefill_lengths"], true);
  manifest.append_lengths = lengths_of(root["append_lengths"], false);
  manifest.per_layer = root["layers"].text() == "per_layer";
  manifest.fill = root["mask"]["fill"].number();
  if (const Field generation = root["generation"]; generation.present()) {
    for (const auto& [name, field] : generation.entries()) {
      if (field.present()) setting_of(field, manifest.generation[name]);
    }
  }
  PYQUANT_TRY(fields.status());
  read_host_data(root, manifest);
  PYQUANT_TRY(fields.status());
  layers_of(root, manifest);
  return fields.status();
}

}  // namespace

const TensorSpec* Graph::input(std::string_view wanted) const {
  for (const TensorSpec& spec : inputs) {
    if (spec.name == wanted) return &spec;
  }
  return nullptr;
}

const Graph* Manifest::find(std::string_view kind, int64_t seq_len, int64_t layer) const {
  const Graph* open = nullptr;
  for (const auto& [name, graph] : graphs) {
    if (graph.kind != kind || graph.layer != layer || graph.columns || graph.rows) continue;
    if (graph.seq_len == seq_len) return &graph;
    if (graph.seq_len < 0) open = &graph;
  }
  return open;
}

std::vector<const Graph*> Manifest::parts(std::string_view kind, int64_t seq_len) const {
  std::vector<const Graph*> fixed, open;
  for (const auto& [name, graph] : graphs) {
    if (graph.kind != kind || !(graph.columns || graph.rows)) continue;
    if (graph.seq_len == seq_len) fixed.push_back(&graph);
    if (graph.seq_len < 0) open.push_back(&graph);
  }
  auto& found = fixed.empty() ? open : fixed;
  const auto first = [](const Graph* graph) {
    return (graph->columns ? graph->columns : graph->rows)->first;
  };
  std::sort(found.begin(), found.end(), [&](const Graph* a, const Graph* b) { return first(a) < first(b); });
  return found;
}

const Tower* Manifest::tower(std::string_view name) const {
  for (const Tower& each : towers) {
    if (each.name == name) return &each;
  }
  return nullptr;
}

std::string list_text(const std::vector<int64_t>& values) {
  std::string text;
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text;
}

Result<Manifest> parse_manifest(std::string_view text, const std::string& what) {
  PYQUANT_TRY_ASSIGN(const circle::json::Value root, circle::json::parse(text, what));
  Fields fields{what, std::nullopt};
  Manifest manifest;
  PYQUANT_TRY(read(Field(fields, &root, ""), fields, manifest));
  return manifest;
}

}  // namespace pyquant::host
