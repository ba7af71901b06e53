// SPDX-License-Identifier: Apache-2.0
#include "host/whole.h"

#include <algorithm>

#include "host/fault.h"

namespace pyquant::host {
namespace {

std::string named(const std::string& name, size_t item) {
  const size_t at = name.find("{item}");
  return at == std::string::npos ? name : name.substr(0, at) + std::to_string(item) + name.substr(at + 6);
}

/// Whether an item fits the place that the graph has for it.
bool fits(Form form, const std::vector<int64_t>& wanted, const std::vector<int64_t>& seen) {
  return form == Form::Frames ? seen[0] <= wanted[0] : seen == wanted;
}

std::string sizes_text(const std::vector<std::vector<int64_t>>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", [" : "[") + list_text(sizes[i]) + "]";
  return text + "]";
}

}  // namespace

void WholeModel::items(const Whole::Item& wanted, const std::vector<const Item*>& found) {
  const Form form = manifest_.towers[wanted.tower].form;
  if (form == Form::Frames) {
    for (size_t i = 0; i < found.size(); ++i) {
      auto [features, mask] = padded_clip(*found[i], wanted.sizes[i][0]);
      inputs_[named(wanted.input, i)] = std::move(features);
      inputs_[named(wanted.mask, i)] = std::move(mask);
    }
    return;
  }
  if (form == Form::Grids) {
    std::vector<const Tensor*> parts;
    for (const Item* item : found) parts.push_back(&item->data);
    inputs_[wanted.input] = joined(parts, 0);
    return;
  }
  int64_t longest = 0;
  for (const Item* item : found) longest = std::max(longest, item->data.shape[0]);
  Tensor all =
      Tensor::zeros(Type::Float32, {static_cast<int64_t>(found.size()), longest, found[0]->data.shape[1]});
  for (size_t i = 0; i < found.size(); ++i) {
    std::memcpy(all.bytes.data() + i * all.row_bytes(), found[i]->data.bytes.data(),
                found[i]->data.bytes.size());
  }
  inputs_[wanted.input] = std::move(all);
}

Status WholeModel::take(const Given& given, std::vector<int64_t>& counts) {
  counts.assign(manifest_.media.size(), 0);
  std::vector<std::vector<const Item*>> found(manifest_.towers.size());
  std::vector<std::vector<std::vector<int64_t>>> wanted(manifest_.towers.size());
  for (const Whole::Item& item : manifest_.whole->items) wanted[item.tower] = item.sizes;
  for (size_t k = 0; k < manifest_.media.size() && k < given.size(); ++k) {
    for (size_t t = 0; t < manifest_.towers.size(); ++t) {
      if (manifest_.towers[t].name != manifest_.media[k].tower) continue;
      for (const Item& item : given[k]) {
        found[t].push_back(&item);
        counts[k] += rows_of(manifest_.towers[t], item.sizes);
      }
    }
  }
  for (size_t t = 0; t < manifest_.towers.size(); ++t) {
    bool same = found[t].size() == wanted[t].size();
    for (size_t i = 0; same && i < found[t].size(); ++i) {
      same = fits(manifest_.towers[t].form, wanted[t][i], found[t][i]->sizes);
    }
    if (same) continue;
    std::vector<std::vector<int64_t>> seen;
    for (const Item* item : found[t]) seen.push_back(item->sizes);
    return fault_of(Code::E_HOST_INPUT, "this bundle has the model in one graph, for prompts with " +
                                            manifest_.towers[t].name + " items of the sizes " +
                                            sizes_text(wanted[t]) + ", and this one has " + sizes_text(seen) +
                                            "; export with these, or with layers=\"stack\", which takes any");
  }
  for (const Whole::Item& item : manifest_.whole->items) {
    if (!found[item.tower].empty()) items(item, found[item.tower]);
  }
  return {};
}

void WholeModel::index(const Prompt& prompt, const std::vector<int64_t>& counts) {
  const size_t width = prompt_.width;
  std::vector<int64_t> rows(prompt_.ids.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i);
  int64_t first = static_cast<int64_t>(rows.size());
  (void)counts;
  for (const Whole::Item& item : manifest_.whole->items) {
    const Tower& tower = manifest_.towers[item.tower];
    // A clip has all the rows of its graph, of which the first are its own: where the r-th row of all clips
    // is.
    std::vector<int64_t> where;
    for (size_t i = 0; i < item.sizes.size(); ++i) {
      const int64_t has = rows_of(tower, item.sizes[i]);
      const bool padded = tower.form == Form::Frames;
      const auto mask = inputs_.find(named(item.mask, i));
      int64_t own = has;
      if (padded && mask != inputs_.end()) {
        const float* real = mask->second.floats();
        own = rows_of(tower, {static_cast<int64_t>(std::count(real, real + mask->second.count(), 1.0f))});
      }
      for (int64_t r = 0; r < own; ++r) where.push_back(first + r);
      first += has;
    }
    for (size_t i = 0; i < prompt.ids.size(); ++i) {
      if (prompt.tower[i] != static_cast<int32_t>(item.tower)) continue;
      rows[i / prompt.width * width + i % prompt.width] = where[static_cast<size_t>(prompt.row[i])];
    }
  }
  inputs_[manifest_.whole->index] =
      int_tensor(rows, {static_cast<int64_t>(prompt_.batch), static_cast<int64_t>(width)});
}

Result<std::unique_ptr<WholeModel>> WholeModel::of(const Manifest& manifest, const Calls& calls,
                                                   const Stack& stack, const Given& given, Prompt& prompt) {
  const Graph* graph = manifest.find("model", manifest.longest);
  if (!graph) {
    return fault_of(Code::E_MANIFEST, "the bundle has no graph of kind 'model' for " +
                                          std::to_string(manifest.longest) + " places");
  }
  if (static_cast<int64_t>(prompt.width) > manifest.longest) {
    return fault_of(Code::E_HOST_INPUT, "the prompt is longer than the graph");
  }
  std::unique_ptr<WholeModel> made(new WholeModel(manifest, calls, stack, *graph));
  std::vector<int64_t> counts;
  PYQUANT_TRY(made->take(given, counts));
  PYQUANT_TRY(mark_rows(manifest, counts, prompt));
  made->prompt_ = prompt.part(0, prompt.width, static_cast<size_t>(manifest.longest));
  if (!manifest.whole->index.empty()) made->index(prompt, counts);
  return made;
}

Result<Tensor> WholeModel::logits(const std::vector<int64_t>* tokens) {
  std::vector<int64_t> counts = prompt_.counts();
  const size_t places = prompt_.ids.size();
  for (size_t row = 0; tokens && row < prompt_.batch; ++row) {
    const size_t at = row * prompt_.width + static_cast<size_t>(counts[row]);
    prompt_.ids[at] = (*tokens)[row];
    prompt_.real[at] = 1;
    for (size_t axis = 0; axis < kAxes; ++axis) {
      prompt_.positions[axis * places + at] = counts[row] + prompt_.deltas[row];
    }
    ++counts[row];
  }
  PYQUANT_TRY_ASSIGN(const Tables tables, stack_.tables(prompt_, Cache::empty(manifest_), false, {}));
  const Tensor ids = stack_.ids(prompt_);
  Inputs inputs{{manifest_.whole->ids, &ids}};
  for (const auto& [name, tensor] : tables) inputs[name] = &tensor;
  for (const auto& [name, tensor] : inputs_) inputs[name] = &tensor;
  PYQUANT_TRY_ASSIGN(const Outputs out, calls_.run(graph_, inputs, {"hidden_states"}));
  const Tensor& hidden = out.at("hidden_states");
  if (hidden.shape.size() != 3 || hidden.shape[1] != manifest_.longest) {
    return fault_of(Code::E_MANIFEST, "graph 'model' makes hidden_states " + shape_text(hidden.shape));
  }
  Tensor last = hidden.zeros_like({hidden.shape[0], 1, hidden.shape[2]});
  const size_t line = static_cast<size_t>(hidden.shape[2]) * type_size(hidden.type);
  for (size_t row = 0; row < prompt_.batch; ++row) {
    const size_t at = row * prompt_.width + static_cast<size_t>(counts[row] - 1);
    std::memcpy(last.bytes.data() + row * line, hidden.bytes.data() + at * line, line);
  }
  return stack_.logits(last);
}

}  // namespace pyquant::host
