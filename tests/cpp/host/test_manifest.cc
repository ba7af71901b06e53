// SPDX-License-Identifier: Apache-2.0
// Manifests: what is read, and every error with what was seen, what was expected, and where.
#include "check.h"
#include "toy.h"

using namespace toy;  // NOLINT

TEST(manifest_is_read) {
  const Manifest read = manifest();
  CHECK_EQ(read.graphs.size(), size_t{6});
  CHECK_EQ(read.layers[0].slots, int64_t{2});
  CHECK_EQ(read.layers[1].slots, int64_t{9});
  CHECK_EQ(read.variants[0].window, int64_t{3});
  CHECK_EQ(read.variants[1].slots, int64_t{9});
  CHECK_EQ(read.variants[1].rotary.scaling, 2.0f);
  CHECK_EQ(read.find("append", 3)->name, "append_s3");
  CHECK_EQ(read.find("token_embedding", 7)->name, "token_embedding");
  CHECK(read.find("append", 4) == nullptr);
  CHECK_EQ(read.graphs.at("token_embedding").inputs[0].shape[1], int64_t{-1});
}

TEST(manifests_that_are_wrong_say_what_and_where) {
  struct Case {
    const char *from, *to, *expected;
  };
  const Case cases[] = {
      {"pyquant-bundle", "other", "'format' is no manifest of a bundle that this program knows"},
      {"\"batch_size\": 1", "\"batch_size\": 0", "'batch_size' is 0, expected an integer from 1"},
      {"\"batch_size\": 1, ", "", "'batch_size' is missing, expected an integer"},
      {"\"fill\": -100.0", "\"fill\": \"low\"", "'mask.fill' is 'low', expected a number"},
      {"\"prefill_lengths\": [4]", "\"prefill_lengths\": []", "'prefill_lengths' is empty"},
      {"\"inv_freq\": [0.25]", "\"inv_freq\": [true]",
       "'rotary_far.inv_freq[0]' is a boolean, expected a number"},
      {"\"variant\": \"far\"", "\"variant\": \"other\"",
       "'cache.layers[1]' is of variant 'other', which host_data.variants does not have"},
      {"\"variant\": \"far\"", "\"variant\": \"far\", \"shares\": 1",
       "'cache.layers[1].shares' is 1, expected an earlier layer"},
      {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "'cache.layers' has 2 layers"},
      {"\"host_data\"", "\"other\"",
       "'host_data' is missing: the bundle is of a pyquant before this program"},
      {"\"host_data\": {\"version\": 1", "\"host_data\": {\"version\": 2",
       "is 2, this program knows version 1"},
      {"\"rule\": \"tokens\"", "\"rule\": \"words\"",
       "'host_data.positions.rule' is 'words', expected one of"},
      {"\"positions\": {\"rule\": \"tokens\"}",
       R"("positions": {"rule": "grids", "merge": 1},
          "media": [{"name": "clip", "token_id": 8, "tower": "audio", "data": "sound", "sizes": "real"}],
          "towers": [{"name": "audio", "form": "frames", "frames_per_token": 2, "input": "f", "mask": "m",
                      "outputs": ["rows"]}])",
       "'host_data.media[0].tower' is of form frames, and positions by grids need towers of form grids"},
      {"\"range\": [0, 15]", "\"range\": [0]",
       "'graphs.token_embedding.inputs[0].range' has 1 values, expected 2"},
  };
  for (const Case& one : cases) {
    const check::Context here(one.to);
    const auto read = parse_manifest(manifest_text({{one.from, one.to}}), "manifest.json");
    CHECK(!read.ok());
    if (read.ok()) continue;
    CHECK_EQ(std::string(code_name(read.fault().code)), "E_MANIFEST");
    CHECK_MSG(read.fault().text().find(one.expected) != std::string::npos, read.fault().text());
    CHECK_MSG(read.fault().text().find("manifest.json") != std::string::npos, read.fault().text());
  }
}

TEST(no_cut_manifest_is_read_or_crashes) {
  const std::string text = manifest_text();
  for (size_t length = 0; length < text.size(); length += 7) {
    CHECK(!parse_manifest(std::string_view(text).substr(0, length), "m").ok());
  }
}
