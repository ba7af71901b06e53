// SPDX-License-Identifier: Apache-2.0
#include "host/towers.h"

#include <algorithm>

#include "host/fault.h"

namespace pyquant::host {
namespace {

class Tour {
 public:
  Tour(const Manifest& manifest, const Calls& calls, const Tower& tower)
      : manifest_(manifest), calls_(calls), tower_(tower), made_(tower.outputs.size()) {}

  Status items(const std::vector<Item>& items) {
    for (size_t i = 0; i < items.size();) {
      size_t taken = 1;
      if (tower_.form == Form::Grids) PYQUANT_TRY(grid(items[i]));
      if (tower_.form == Form::Frames) PYQUANT_TRY(clip(items[i]));
      if (tower_.form == Form::Places) {
        taken = several(items, i);
        PYQUANT_TRY(places(items, i, taken));
      }
      i += taken;
    }
    return {};
  }

  int64_t rows() const {
    int64_t count = 0;
    for (const Tensor& part : made_.empty() ? std::vector<Tensor>() : made_[0]) count += part.shape[0];
    return count;
  }

  Features features() const {
    Features found;
    for (const auto& parts : made_) {
      std::vector<const Tensor*> pointers;
      for (const Tensor& part : parts) pointers.push_back(&part);
      if (!pointers.empty()) found.push_back(joined(pointers, 0));
    }
    return found;
  }

 private:
  const Graph* graph_for(const std::vector<int64_t>& grid) const {
    for (const auto& [name, graph] : manifest_.graphs) {
      if (graph.kind == tower_.name && graph.grids.size() == 1 && graph.grids[0] == grid) return &graph;
    }
    return nullptr;
  }

  Fault none(const std::vector<int64_t>& sizes) const {
    std::string known;
    for (const auto& [name, graph] : manifest_.graphs) {
      if (graph.kind == tower_.name) known += (known.empty() ? "" : ", ") + name;
    }
    return fault_of(Code::E_HOST_INPUT, "this bundle has no " + tower_.name + " graph for [" +
                                            list_text(sizes) + "], only " +
                                            (known.empty() ? "none at all" : known) +
                                            "; resize the item, or export with these sizes");
  }

  Status call(const Graph& graph, const Inputs& inputs, int64_t least) {
    PYQUANT_TRY_ASSIGN(Outputs out, calls_.run(graph, inputs, tower_.outputs));
    for (size_t k = 0; k < tower_.outputs.size(); ++k) {
      Tensor& rows = out[tower_.outputs[k]];
      if (rows.shape.size() != 2 || !is_real(rows.type) || rows.shape[0] < least) {
        return fault_of(Code::E_MANIFEST, "graph '" + graph.name + "' makes '" + tower_.outputs[k] + "' of " +
                                              shape_text(rows.shape) + ", expected at least " +
                                              std::to_string(least) + " rows");
      }
      made_[k].push_back(std::move(rows));
    }
    return {};
  }

  /// Frames never attend to each other, so an item may go frame by frame.
  Status grid(const Item& item) {
    const int64_t frames = item.sizes[0];
    if (const Graph* whole = graph_for(item.sizes)) {
      return call(*whole, {{tower_.input, &item.data}}, rows_of(tower_, item.sizes));
    }
    const std::vector<int64_t> one{1, item.sizes[1], item.sizes[2]};
    const Graph* single = graph_for(one);
    if (!single) return none(item.sizes);
    for (int64_t frame = 0; frame < frames; ++frame) {
      const int64_t patches = item.data.shape[0] / frames;
      Tensor own = Tensor::zeros(Type::Float32, {patches, item.data.shape[1]});
      std::memcpy(own.bytes.data(), item.data.bytes.data() + static_cast<size_t>(frame) * own.bytes.size(),
                  own.bytes.size());
      PYQUANT_TRY(call(*single, {{tower_.input, &own}}, rows_of(tower_, one)));
    }
    return {};
  }

  /// How many items from `first` on go through one graph.
  size_t several(const std::vector<Item>& items, size_t first) const {
    const auto wanted = static_cast<size_t>(tower_.at_once);
    if (wanted < 2 || first + wanted > items.size()) return 1;
    for (size_t i = first; i < first + wanted; ++i) {
      if (items[i].sizes != items[first].sizes) return 1;
    }
    return wanted;
  }

  Status places(const std::vector<Item>& items, size_t first, size_t count) {
    const auto& sizes = items[first].sizes;
    const Graph* found = nullptr;
    for (const auto& [name, graph] : manifest_.graphs) {
      const bool fits = graph.kind == tower_.name && graph.shape == sizes;
      if (fits && graph.images == static_cast<int64_t>(count)) found = &graph;
    }
    if (!found) return none(sizes);
    const Tensor& one = items[first].data;
    Tensor all = Tensor::zeros(Type::Float32, {static_cast<int64_t>(count), one.shape[0], one.shape[1]});
    for (size_t i = 0; i < count; ++i) {
      const auto& own = items[first + i].data;
      if (own.shape != one.shape) return none(sizes);
      std::memcpy(all.bytes.data() + i * one.bytes.size(), own.bytes.data(), one.bytes.size());
    }
    return call(*found, {{tower_.input, &all}}, rows_of(tower_, sizes) * static_cast<int64_t>(count));
  }

  Status clip(const Item& item) {
    const Graph* found = nullptr;
    for (const auto& [name, graph] : manifest_.graphs) {
      if (graph.kind != tower_.name || graph.frames < item.sizes[0]) continue;
      if (!found || graph.frames < found->frames) found = &graph;
    }
    if (!found) return none(item.sizes);
    const auto [features, mask] = padded_clip(item, found->frames);
    const int64_t rows = rows_of(tower_, item.sizes);
    PYQUANT_TRY(call(*found, {{tower_.input, &features}, {tower_.mask, &mask}}, rows));
    for (auto& parts : made_) {  // what is behind the clip means nothing
      Tensor& last = parts.back();
      last.bytes.resize(static_cast<size_t>(rows) * last.row_bytes());
      last.shape[0] = rows;
    }
    return {};
  }

  const Manifest& manifest_;
  const Calls& calls_;
  const Tower& tower_;
  std::vector<std::vector<Tensor>> made_;  // parts of each output
};

}  // namespace

int64_t rows_of(const Tower& tower, const std::vector<int64_t>& sizes) {
  if (tower.form == Form::Grids) return sizes[0] * (sizes[1] / tower.unit) * (sizes[2] / tower.unit);
  if (tower.form == Form::Places) return sizes[0] * sizes[1] / (tower.unit * tower.unit);
  return (sizes[0] + tower.unit - 1) / tower.unit;
}

std::pair<Tensor, Tensor> padded_clip(const Item& item, int64_t frames) {
  Tensor features = Tensor::zeros(Type::Float32, {1, frames, item.data.shape[1]});
  Tensor mask = Tensor::zeros(Type::Float32, {1, frames});
  std::memcpy(features.bytes.data(), item.data.bytes.data(), item.data.bytes.size());
  std::fill(mask.floats(), mask.floats() + item.sizes[0], 1.0f);
  return {std::move(features), std::move(mask)};
}

Result<TowerRows> run_towers(const Manifest& manifest, const Calls& calls, const Given& given) {
  TowerRows found;
  std::vector<Tour> tours;
  for (const Tower& tower : manifest.towers) tours.emplace_back(manifest, calls, tower);
  for (size_t k = 0; k < manifest.media.size(); ++k) {
    found.counts.push_back(0);
    if (k >= given.size() || given[k].empty()) continue;
    for (size_t t = 0; t < tours.size(); ++t) {
      if (manifest.towers[t].name != manifest.media[k].tower) continue;
      const int64_t before = tours[t].rows();
      PYQUANT_TRY(tours[t].items(given[k]));
      found.counts.back() = tours[t].rows() - before;
    }
  }
  for (const Tour& tour : tours) found.towers.push_back(tour.features());
  return found;
}

Joined join(const Step& step, const Graph& graph, const TowerRows& rows, const Prompt& prompt,
            int64_t width) {
  Joined made;
  const auto places = static_cast<int64_t>(prompt.ids.size());
  std::vector<int64_t> index(prompt.ids.size());
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int64_t>(i);
  int64_t first = places;
  for (const Step::Segment& segment : step.segments) {
    const TensorSpec* spec = segment.inputs.empty() ? nullptr : graph.input(segment.inputs[0]);
    if (!spec || spec->shape.size() != 2) continue;  // the graph has no room for this tower
    const Features& features = rows.towers[segment.tower];
    std::vector<int64_t> used;
    for (size_t i = 0; i < index.size(); ++i) {
      if (prompt.tower[i] == static_cast<int32_t>(segment.tower)) used.push_back(prompt.row[i]);
    }
    std::sort(used.begin(), used.end());
    for (size_t i = 0; i < index.size(); ++i) {
      if (prompt.tower[i] != static_cast<int32_t>(segment.tower)) continue;
      index[i] = first + (std::lower_bound(used.begin(), used.end(), prompt.row[i]) - used.begin());
    }
    const auto room = static_cast<size_t>(std::max<int64_t>(0, spec->shape[0]));
    for (size_t k = 0; k < segment.inputs.size(); ++k) {
      const int64_t columns = features.empty() ? width : features[k].shape[1];
      if (columns != spec->shape[1]) continue;  // the call is refused for the missing input
      const Shape shape{static_cast<int64_t>(room), columns};
      Tensor taken = features.empty() ? Tensor::zeros(Type::Float32, shape) : features[k].zeros_like(shape);
      for (size_t i = 0; !features.empty() && i < used.size() && i < room; ++i) {
        const size_t line = features[k].row_bytes();
        std::memcpy(taken.bytes.data() + i * line,
                    features[k].bytes.data() + static_cast<size_t>(used[i]) * line, line);
      }
      made.inputs.emplace(segment.inputs[k], std::move(taken));
    }
    first += static_cast<int64_t>(room);
  }
  made.index = int_tensor(index, {static_cast<int64_t>(prompt.batch), static_cast<int64_t>(prompt.width)});
  return made;
}

}  // namespace pyquant::host
