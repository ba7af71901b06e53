// SPDX-License-Identifier: Apache-2.0
#include "host/manifest_host.h"

namespace pyquant::host {
namespace {

constexpr int64_t kVersion = 1;
constexpr int64_t kMostUnits = 1 << 16;
constexpr int64_t kMostSide = 1 << 20;

Rotary rotary_of(const Field& field, int64_t axes) {
  Rotary rotary;
  for (const Field& item : field["inv_freq"].items()) rotary.inv_freq.push_back(item.number());
  rotary.scaling = field["attention_scaling"].number();
  if (const Field axis = field["axis"]; axis.present()) {
    for (const Field& item : axis.items()) rotary.axis.push_back(item.integer(0, axes - 1));
    if (rotary.axis.size() != rotary.inv_freq.size()) axis.fail("has not one entry for each of inv_freq");
  }
  return rotary;
}

std::vector<std::pair<std::string, std::string>> names_of(const Field& field) {
  std::vector<std::pair<std::string, std::string>> found;
  for (const auto& [name, value] : field.entries()) found.emplace_back(name, value.text());
  return found;
}

size_t tower_of(const Field& field, const Manifest& manifest) {
  const std::string name = field.text();
  for (size_t i = 0; i < manifest.towers.size(); ++i) {
    if (manifest.towers[i].name == name) return i;
  }
  field.fail("is '" + name + "', which host_data.towers does not have");
  return 0;
}

std::string tower_form(Form form) {
  return form == Form::Grids ? "grids" : form == Form::Places ? "places" : "frames";
}

Tower tower_entry(const Field& field) {
  Tower tower;
  tower.name = field["name"].text();
  tower.input = field["input"].text();
  tower.outputs = field["outputs"].texts();
  if (tower.outputs.empty()) field["outputs"].fail("is empty, expected at least the rows");
  const std::string form = field["form"].text();
  if (form == "grids") {
    tower.unit = field["merge"].integer(1, kMostUnits);
  } else if (form == "places") {
    tower.form = Form::Places;
    tower.unit = field["pool"].integer(1, kMostUnits);
    tower.at_once = field["at_once"].integer_or(0, 0);
  } else if (form == "frames") {
    tower.form = Form::Frames;
    tower.unit = field["frames_per_token"].integer(1, kMostUnits);
    tower.mask = field["mask"].text();
  } else {
    field["form"].fail("is '" + form + "', expected one of grids, places, frames");
  }
  return tower;
}

Step step_of(const Field& field, const Manifest& manifest) {
  Step step;
  step.kind = field["kind"].text();
  step.inputs = names_of(field["inputs"]);
  step.outputs = names_of(field["outputs"]);
  if (const Field segments = field["segments"]; segments.present()) {
    step.index = field["index"].text();
    for (const Field& segment : segments.items()) {
      const size_t tower = tower_of(segment["tower"], manifest);
      step.segments.push_back({tower, segment["inputs"].texts()});
      if (tower < manifest.towers.size() &&
          step.segments.back().inputs.size() != manifest.towers[tower].outputs.size()) {
        segment["inputs"].fail("are not as many as the tower has outputs");
      }
    }
    step.zeros = field["zeros"].present() ? field["zeros"].texts() : std::vector<std::string>();
  }
  return step;
}

Whole whole_of(const Field& field, const Manifest& manifest) {
  Whole whole;
  whole.ids = field["input_ids"].text();
  if (!field["media"].present()) return whole;
  whole.index = field["index"].text();
  for (const Field& entry : field["media"].items()) {
    Whole::Item item{
        tower_of(entry["tower"], manifest), entry["input"].text(), entry["mask"].text_or(""), {}};
    const Form form = item.tower < manifest.towers.size() ? manifest.towers[item.tower].form : Form::Grids;
    const size_t numbers = form == Form::Grids ? 3 : form == Form::Places ? 2 : 1;
    for (const Field& sizes : entry["items"].items()) {
      item.sizes.push_back(sizes.integers(1, kMostSide));
      if (item.sizes.back().size() != numbers) {
        sizes.fail("has " + std::to_string(item.sizes.back().size()) + " numbers, expected " +
                   std::to_string(numbers));
      }
    }
    whole.items.push_back(std::move(item));
  }
  return whole;
}

Together together_of(const Field& field, const Manifest& manifest) {
  Together together;
  together.media = field["media"].texts();
  together.bounded = field["bounded"].boolean();
  together.variants.resize(manifest.variants.size());
  for (const Field& item : field["variants"].items()) {
    const std::string name = item.text();
    bool known = false;
    for (size_t i = 0; i < manifest.variants.size(); ++i) {
      if (manifest.variants[i].name != name) continue;
      together.variants[i] = known = true;
    }
    if (!known) item.fail("is '" + name + "', which host_data.variants does not have");
  }
  return together;
}

}  // namespace

void read_host_data(const Field& root, Manifest& manifest) {
  const Field data = root["host_data"];
  if (!data.present()) {
    data.fail(
        "is missing: the bundle is of a pyquant before this program, or its model does not generate; export "
        "it again");
    return;
  }
  if (const int64_t version = data["version"].integer(1); version != kVersion) {
    data["version"].fail("is " + std::to_string(version) + ", this program knows version " +
                         std::to_string(kVersion));
    return;
  }
  const Field positions = data["positions"];
  const std::string rule = positions["rule"].text();
  if (rule == "grids") {
    manifest.grid_merge = positions["merge"].integer(1, kMostUnits);
  } else if (rule != "tokens") {
    positions["rule"].fail("is '" + rule + "', expected one of tokens, grids");
  }
  for (const Field& field : data["variants"].items()) {
    Variant variant;
    variant.name = field["name"].text();
    variant.mask = field["mask"].text();
    variant.cos = field["cos"].text();
    variant.signed_sin = field["signed_sin"].text();
    variant.window = field["window"].integer_or(0, 1);
    variant.rotary = rotary_of(root[field["rotary"].text()], 3);
    manifest.variants.push_back(std::move(variant));
  }
  if (manifest.variants.empty()) data["variants"].fail("is empty, expected at least one");
  if (data["towers"].present()) {
    for (const Field& field : data["towers"].items()) manifest.towers.push_back(tower_entry(field));
  }
  if (data["media"].present()) {
    for (const Field& field : data["media"].items()) {
      manifest.media.push_back({field["name"].text(), field["token_id"].integer(0), field["tower"].text(),
                                field["data"].text(), field["sizes"].text(),
                                field["by_frame"].present() && field["by_frame"].boolean()});
      const Tower* tower = manifest.tower(manifest.media.back().tower);
      if (manifest.grid_merge && tower && tower->form != Form::Grids) {
        field["tower"].fail("is of form " + tower_form(tower->form) +
                            ", and positions by grids need towers of form grids");
      }
    }
  }
  for (const Field& field : data["embedding"].items()) manifest.embedding.push_back(step_of(field, manifest));
  if (data["layer_inputs"].present()) {
    for (const Field& field : data["layer_inputs"].items()) {
      manifest.layer_inputs.push_back(
          {field["input"].text(), field["value"].text(), field["axis"].integer_or(-1, 0)});
    }
  }
  if (data["placeholder_id"].present()) manifest.placeholder_id = data["placeholder_id"].integer(0);
  if (data["together"].present()) manifest.together = together_of(data["together"], manifest);
  if (data["model"].present()) manifest.whole = whole_of(data["model"], manifest);
}

}  // namespace pyquant::host
