// SPDX-License-Identifier: Apache-2.0
// Manifests with numbers, names and entries changed at random: whatever parses generates, or says why not;
// nothing is read or written beside a tensor (the sanitizers see it).
#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "check.h"
#include "host/media.h"
#include "host/random.h"
#include "toy.h"

using namespace toy;  // NOLINT

namespace {

/// The text with one number, name or entry replaced.
std::string mutated(std::string text, Random& random) {
  static const char* const kNumbers[] = {"0",       "1",           "2",   "3",    "7", "-1",
                                         "1048576", "99999999999", "0.5", "null", "[]"};
  const size_t start = random.below(text.size());
  if (random.below(3) == 0) {  // a name becomes another of the text
    const size_t first = text.find('"', start), end = text.find('"', first + 1);
    const size_t other = text.find('"', random.below(text.size())), stop = text.find('"', other + 1);
    if (first == std::string::npos || end == std::string::npos) return text;
    if (other == std::string::npos || stop == std::string::npos) return text;
    const std::string name = text.substr(other, stop - other + 1);
    return text.replace(first, end - first + 1, name);
  }
  const size_t first = text.find_first_of("0123456789", start);
  if (first == std::string::npos) return text;
  const size_t end = text.find_first_not_of("0123456789.", first);
  return text.replace(first, end - first, kNumbers[random.below(std::size(kNumbers))]);
}

/// How many times as many rounds as the default run has.
int times() {
  const char* wanted = std::getenv("PYQUANT_MUTATIONS");
  return wanted ? std::atoi(wanted) : 1;
}

/// A manifest with towers of two forms, and the graphs that join their rows with text.
std::string media_text(int batch, bool grids) {
  const std::string b = std::to_string(batch);
  std::string graphs =
      R"("vision": {"kind": "vision", "file": "g", "outputs": [], "inputs": [
      {"name": "p", "dtype": "float32", "shape": )" +
      std::string(grids ? R"([2, 1]}], "grids": [[1, 1, 2]]}, )" : R"([1, 2, 1]}], "shape": [1, 2]}, )") +
      R"("audio": {"kind": "audio", "file": "g", "frames": 4, "outputs": [], "inputs": [
      {"name": "f", "shape": [1, 4, 1], "dtype": "float32"}, {"name": "m", "shape": [1, 4], "dtype": "float32"}]}, )";
  for (const char* places : {"2", "3", "4"}) {
    const std::string rows = std::to_string(batch * std::atoi(places)), s = places;
    graphs += "\"fusion_s" + s + "\": {\"kind\": \"fusion\", \"file\": \"g\", \"seq_len\": " + s +
              ", \"outputs\": [], \"inputs\": [{\"name\": \"text\", \"shape\": [" + b + ", " + s +
              ", 1], \"dtype\": \"float32\"}, {\"name\": \"v\", \"shape\": [" + rows +
              ", 1], \"dtype\": \"float32\"}, {\"name\": \"a\", \"shape\": [" + rows +
              ", 1], \"dtype\": \"float32\"}, {\"name\": \"at\", \"shape\": [" + b + ", " + s +
              "], \"dtype\": \"int32\"}]}, ";
  }
  const std::string positions = grids ? R"("positions": {"rule": "grids", "merge": 1},)"
                                      : R"("positions": {"rule": "tokens"}, "placeholder_id": 0,
        "together": {"media": ["image"], "variants": ["near"], "bounded": true},)";
  const std::string form = grids ? R"("form": "grids", "merge": 1)" : R"("form": "places", "pool": 1)";
  return manifest_text(
      {{"\"graphs\": {", "\"graphs\": {" + graphs},
       {"\"outputs\": {\"inputs_embeds\": \"hidden\"}}]",
        R"("outputs": {"inputs_embeds": "hidden"}},
          {"kind": "fusion", "inputs": {"text": "hidden"}, "outputs": {"inputs_embeds": "hidden"}, "index": "at",
           "segments": [{"tower": "vision", "inputs": ["v"]}, {"tower": "audio", "inputs": ["a"]}], "zeros": []}])"},
       {"\"positions\": {\"rule\": \"tokens\"}",
        positions + R"("media": [
          {"name": "image", "token_id": 7, "tower": "vision", "data": "pixels", "sizes": "at"})" +
            (grids
                 ? ""
                 : R"(, {"name": "clip", "token_id": 8, "tower": "audio", "data": "sound", "sizes": "real"})") +
            R"(],
        "towers": [{"name": "vision", "input": "p", "outputs": ["rows"], )" +
            form + R"(}, {"name": "audio", "form": "frames", "frames_per_token": 2, "input": "f", "mask": "m",
            "outputs": ["rows"]}])"}},
      batch);
}

/// Echo, with towers that give zeros and a fusion that gives the text.
class Towers : public Echo {
 public:
  Result<Outputs> run(const std::string& graph, const Inputs& inputs) override {
    Outputs out;
    if (graph == "vision" || graph == "audio") {
      int64_t rows = 1;
      for (const auto& [name, tensor] : inputs)
        rows = std::max(rows, tensor->count() / (graph == "audio" ? 2 : 1));
      out["rows"] = Tensor::zeros(Type::Float32, {rows, 1});
      return out;
    }
    if (graph.find("fusion") != 0) return Echo::run(graph, inputs);
    for (const auto& [name, tensor] : inputs) {
      if (is_real(tensor->type) && tensor->shape.size() == 3) out["inputs_embeds"] = *tensor;
    }
    return out;
  }
};

/// What a processor gives: one image of two patches, one clip of three frames.
circle::Safetensors processed(bool grids) {
  static const float pixels[] = {1, 2}, sound[] = {1, 2, 3};
  static const int64_t grid[] = {1, 1, 2}, at[] = {0, 0, 1, 0}, real[] = {1, 1, 1};
  const auto bytes = [](const void* data, size_t size) {
    return circle::Bytes{static_cast<const uint8_t*>(data), size};
  };
  circle::Safetensors file;
  file.tensors["pixels"] = {"pixels", "F32", grids ? Shape{2, 1} : Shape{1, 2, 1},
                            bytes(pixels, sizeof pixels)};
  file.tensors["at"] = {"at", "I64", grids ? Shape{1, 3} : Shape{1, 2, 2},
                        grids ? bytes(grid, sizeof grid) : bytes(at, sizeof at)};
  file.tensors["sound"] = {"sound", "F32", {1, 3, 1}, bytes(sound, sizeof sound)};
  file.tensors["real"] = {"real", "I64", {1, 3}, bytes(real, sizeof real)};
  return file;
}

}  // namespace

TEST(mutated_manifests_with_media_generate_or_say_why_not) {
  Random random(12);
  int answered = 0, parsed = 0;
  for (int round = 0; round < 4000 * times(); ++round) {
    const bool grids = round % 2;
    std::string text = media_text(1, grids);
    for (uint64_t i = 0; round > 1 && i <= random.below(3); ++i) text = mutated(text, random);
    auto read = parse_manifest(text, "m");
    if (!read.ok() || read.value().batch > 4) continue;
    ++parsed;
    Request wanted = request(TokenRows(static_cast<size_t>(read.value().batch), {1, 7, 7, 8, 8, 2}), 3);
    if (grids) wanted.prompts[0] = {1, 7, 7, 2};
    const circle::Safetensors file = processed(grids);
    auto given = media_of(read.value(), file, {});
    if (!given.ok()) continue;
    wanted.media = std::move(given).value();
    Towers towers;
    const auto generator = Generator::create(std::move(read).value(), towers, "");
    if (!generator.ok()) continue;
    const auto made = generator.value()->generate(wanted);
    if (round < 2) CHECK_MSG(made.ok(), made.ok() ? "" : made.fault().text());
    answered += made.ok();
  }
  CHECK_MSG(parsed > 500 && answered > 50, std::to_string(parsed) + " " + std::to_string(answered));
}

TEST(mutated_manifests_generate_or_say_why_not) {
  Random random(11);
  int parsed = 0, answered = 0;
  for (int round = 0; round < 4000 * times(); ++round) {
    std::string text = manifest_text({}, 1 + round % 2);
    for (uint64_t i = 0; i <= random.below(3); ++i) text = mutated(text, random);
    auto read = parse_manifest(text, "m");
    if (!read.ok()) continue;
    ++parsed;
    if (read.value().batch > 4) continue;
    const auto batch = static_cast<size_t>(read.value().batch);
    Echo echo(round % 3 == 0);
    const auto generator = Generator::create(std::move(read).value(), echo, "");
    if (!generator.ok()) continue;
    answered += generator.value()->generate(request(TokenRows(batch, {1, 2, 3, 4, 5}), 4)).ok();
  }
  CHECK_MSG(parsed > 500 && answered > 100, std::to_string(parsed) + " " + std::to_string(answered));
}
