// SPDX-License-Identifier: Apache-2.0
// The manifest of a bundle, typed and checked: everything that a host knows of a model. No entry names a
// model family; what families differ in is data here (the manifest's `host_data`, whose forms are described
// in pyquant/decoder/host_data.py). Parsing only; what hosts do with it is left to the other files of this
// room.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "host/tensor.h"
#include "pyquant/status.h"

namespace pyquant::host {

/// An input or output of a graph, as a host passes it. A size of -1 is open.
struct TensorSpec {
  std::string name;
  Type type = Type::Float32;
  Shape shape;
  std::optional<std::pair<int64_t, int64_t>> range;  // of integers, both ends included
};

/// What the manifest says of a file.
struct FileFacts {
  int64_t bytes = -1;  // -1: nothing
  std::string sha256;
};

struct Graph {
  std::string name, kind, file;
  std::string signature;  // of the file, where it has several graphs
  FileFacts facts;        // of the file
  int64_t seq_len = -1;   // places; -1: any number
  int64_t layer = -1;     // of a graph of one layer
  std::vector<TensorSpec> inputs, outputs;
  std::map<std::string, int64_t> bands;                // mask -> tokens of a block
  std::vector<std::vector<int64_t>> grids;             // of a tower of form "grids"
  std::vector<int64_t> shape;                          // of a tower of form "places": height, width
  int64_t images = 1, frames = 0;                      // items at once; places of a tower of form "frames"
  std::optional<std::pair<int64_t, int64_t>> columns;  // parts of a split table: `layers` ...
  std::optional<std::pair<int64_t, int64_t>> rows;     // ... or `rows`

  const TensorSpec* input(std::string_view name) const;
};

/// A table of rows in a file beside the graphs.
struct Table {
  std::string name, file, numbers, output;
  int64_t rows = 0, width = 0;
  float factor = 1;
};

struct Rotary {
  std::vector<float> inv_freq;
  float scaling = 1;
  std::vector<int64_t> axis;  // which position drives each frequency; empty: the first
};

/// Layers with one mask and one pair of rotary tables.
struct Variant {
  std::string name, mask, cos, signed_sin;
  Rotary rotary;
  int64_t window = 0;  // how many positions back a query sees, itself included; 0: all
  int64_t slots = 0;   // of the caches of its layers
};

struct Layer {
  size_t variant = 0;
  int64_t kv_heads = 0, head_dim = 0, slots = 0;
  int64_t shares = -1;  // the layer whose keys it reads; -1: its own
};

struct Step {
  std::string kind;
  std::vector<std::pair<std::string, std::string>> inputs;   // graph input <- value
  std::vector<std::pair<std::string, std::string>> outputs;  // graph output -> value
  struct Segment {
    size_t tower;
    std::vector<std::string> inputs;
  };
  std::vector<Segment> segments;  // of the step that joins text and rows of towers; `index` says where
  std::string index;
  std::vector<std::string> zeros;  // values that are zeros where that step is not run
  bool joins() const { return !index.empty(); }
};

/// An input of a layer's graph that is a value, with "{layer}" in its name, or part `layer` of it along
/// `axis`.
struct LayerInput {
  std::string input, value;
  int64_t axis = -1;
};

struct Media {
  std::string name;
  int64_t token_id = 0;
  std::string tower, data, sizes;
  bool by_frame = false;  // positions count each frame as an item of its own
};

enum class Form : uint8_t { Grids, Places, Frames };

struct Tower {
  std::string name;  // of its graphs' kind
  Form form = Form::Grids;
  std::string input, mask;
  std::vector<std::string> outputs;
  int64_t unit = 1;  // patches of a row along one side, or frames of a row
  int64_t at_once = 0;
};

/// What the one graph of a whole model takes besides tokens, masks and tables.
struct Whole {
  std::string ids, index;
  struct Item {
    size_t tower;
    std::string input, mask;
    std::vector<std::vector<int64_t>> sizes;
  };
  std::vector<Item> items;
};

/// Places of these media that see each other within one run.
struct Together {
  std::vector<std::string> media;
  std::vector<bool> variants;
  bool bounded = false;
};

/// An entry of the model's generation config: its JSON as numbers; `text` is what an error shows.
struct Setting {
  std::vector<double> values;
  bool is_number = false, is_flag = false, is_list = false;
  std::string text;
};

struct Manifest {
  std::map<std::string, Graph> graphs;
  std::vector<Table> tables;
  std::map<std::string, FileFacts> files;  // beside the graphs
  int64_t batch = 1, longest = 0;
  std::vector<int64_t> prefill_lengths, append_lengths;
  bool per_layer = false;
  float fill = 0;
  std::vector<Variant> variants;
  std::vector<Layer> layers;
  std::vector<Step> embedding;
  std::vector<LayerInput> layer_inputs;
  std::optional<int64_t> placeholder_id;
  std::vector<Media> media;
  std::vector<Tower> towers;
  int64_t grid_merge = 0;  // positions by grids, of items merged so; 0: positions count tokens
  std::optional<Together> together;
  std::optional<Whole> whole;
  std::map<std::string, Setting> generation;

  /// The graph of a kind for so many places, else the one for any number; nullptr: none.
  const Graph* find(std::string_view kind, int64_t seq_len, int64_t layer = -1) const;
  /// All graphs of a kind for so many places (or, without any, for any number), in order of their parts.
  std::vector<const Graph*> parts(std::string_view kind, int64_t seq_len) const;
  const Tower* tower(std::string_view name) const;
};

/// Reads a manifest. `what` names it in messages. Fails with E_MANIFEST, or as json::parse does.
Result<Manifest> parse_manifest(std::string_view text, const std::string& what);
/// "1, 2, 3"
std::string list_text(const std::vector<int64_t>& values);

}  // namespace pyquant::host
