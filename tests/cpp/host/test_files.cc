// SPDX-License-Identifier: Apache-2.0
// A bundle's folder, tables beside the graphs, a processor's tensors, and recordings: what is read, and each
// fault.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "check.h"
#include "host/bundle.h"
#include "host/replay.h"
#include "host/row_table.h"
#include "host/sha256.h"
#include "toy.h"

using namespace toy;  // NOLINT
using circle::WeightsEntry;

namespace {

/// A folder of this test alone, gone with it.
struct Folder {
  Folder() : path(std::filesystem::temp_directory_path() / ("pyquant_host_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path / name) << text; }
  std::filesystem::path path;
};

template <class T>
WeightsEntry entry(const std::string& name, const char* dtype, Shape shape, const std::vector<T>& values) {
  return {name,
          dtype,
          std::move(shape),
          {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)}};
}

template <class R>
std::string text_of(const R& result) {
  return result.ok() ? "no fault" : result.fault().text();
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(a_bundle_has_the_files_that_its_manifest_names) {
  const Folder folder;
  CHECK(has(text_of(open_bundle(folder.path.string())), "E_OPEN"));
  folder.write("manifest.json", manifest_text({{"\"file\": \"g\"", "\"file\": \"g\", \"bytes\": 3"}}));
  CHECK(has(text_of(open_bundle(folder.path.string())), "E_BUNDLE_FILE"));
  folder.write("g", "four");
  CHECK(has(text_of(open_bundle(folder.path.string())), "has 4 bytes, the manifest says 3"));
  folder.write("g", "abc");
  CHECK_EQ(text_of(open_bundle(folder.path.string())), "no fault");
  folder.write("manifest.json", manifest_text({{"\"file\": \"g\"", "\"file\": \"../g\""}}));
  CHECK(has(text_of(open_bundle(folder.path.string())), "is no file of the folder"));
}

TEST(sha256_of_the_examples_of_fips_180_4_and_of_every_way_to_end_a_block) {
  const auto digest = [](const std::string& text) {
    return sha256(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  CHECK_EQ(digest(""), std::string("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
  CHECK_EQ(digest("abc"), std::string("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
  CHECK_EQ(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
           std::string("248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"));
  CHECK_EQ(digest(std::string(1000000, 'a')),
           std::string("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
  std::string all;  // Python's hashlib over the digests of 0 to 130 letters, one behind another
  for (size_t size = 0; size <= 130; ++size) all += digest(std::string(size, 'x'));
  CHECK_EQ(digest(all), std::string("87aca1c44bc7ba8897768170211f0a02063de70801131ff86c7edb9ce32c6a50"));
}

TEST(checksums_of_a_bundle_are_compared_on_request) {
  const Folder folder;
  const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  const auto opened = [&] { return text_of(open_bundle(folder.path.string(), Checks::Checksums)); };
  const std::string file = "\"file\": \"g\"", facts = file + ", \"bytes\": 3, \"sha256\": \"" + abc + "\"";
  const auto with_facts = [&](const std::string& more) {
    std::string text = manifest_text({{"\"format\"", more + "\"format\""}});
    for (size_t at = 0; (at = text.find(file, at)) != std::string::npos; at += facts.size()) {
      text.replace(at, file.size(), facts);
    }
    folder.write("manifest.json", text);
  };
  folder.write("g", "abc");
  folder.write("t", "abx");
  with_facts("");
  CHECK_EQ(opened(), "no fault");
  with_facts("\"files\": {\"t\": {\"bytes\": 3, \"sha256\": \"" + abc + "\"}}, ");
  CHECK(has(opened(),
            "file 't' is not the file that was exported: its sha256 is b2bdab4230154046ad0b7dfa830a9260"
            "caa5bd6ae230e582a2244ab4bf0b4ca5, the manifest has " +
                abc + "; copy it anew"));
  CHECK_EQ(text_of(open_bundle(folder.path.string())), "no fault");
  folder.write("t", "ab");
  CHECK(has(text_of(open_bundle(folder.path.string())), "file 't' has 2 bytes, the manifest says 3"));
  folder.write("t", "abc");
  folder.write("g", "abx");
  CHECK(has(opened(), "g: graph 'append_s2' is not the file that was exported"));
  folder.write("manifest.json", manifest_text());
  CHECK(has(opened(), "has no sha256 in the manifest"));
}

TEST(rows_of_a_table_are_read_from_its_file) {
  const Folder folder;
  const std::vector<uint8_t> rows = {0x21, 0xf8, 0x03, 0x70};  // 1 2, -8 -1; 3 0, 0 7
  const std::vector<float> scales = {0.5f, 2.0f};
  const std::vector<int32_t> zeros = {0, 1};
  const std::string path = folder / "t.safetensors";
  CHECK(circle::write_safetensors({entry("rows", "U8", {2, 2}, rows), entry("scale", "F32", {2}, scales),
                                   entry("zero_point", "I32", {2}, zeros)},
                                  path)
            .ok());
  Table table{"t", "t.safetensors", "int4", "out", 2, 4, 3};
  const auto opened = RowTable::open(table, path);
  CHECK_EQ(text_of(opened), "no fault");
  const auto made = opened.value().rows(int_tensor({1, 0}, {1, 2}));
  const std::vector<float> expected = {12, -6, -6, 36, 1.5f, 3, -12, -1.5f};
  for (size_t i = 0; i < expected.size(); ++i) CHECK_EQ(made.value().floats()[i], expected[i]);
  CHECK(has(text_of(opened.value().rows(int_tensor({2}, {1, 1}))),
            "token 2 is outside the table 't' of 2 rows"));
  table.width = 6;
  CHECK(has(text_of(RowTable::open(table, path)), "E_BUNDLE_FILE"));
  table.numbers = "int3";
  CHECK(has(text_of(RowTable::open(table, path)), "has rows of int3"));
}

TEST(media_of_a_processor) {
  const Folder folder;
  const std::string media =
      R"("positions": {"rule": "tokens"},
         "media": [{"name": "image", "token_id": 7, "tower": "vision", "data": "pixels", "sizes": "at"},
                   {"name": "audio", "token_id": 8, "tower": "audio", "data": "sound", "sizes": "real"},
                   {"name": "other", "token_id": 9, "tower": "none", "data": "smell", "sizes": "of"}],
         "towers": [{"name": "vision", "form": "places", "pool": 1, "input": "p", "outputs": ["rows"]},
                    {"name": "audio", "form": "frames", "frames_per_token": 4, "input": "f", "mask": "m",
                     "outputs": ["rows"]}])";
  auto read = parse_manifest(manifest_text({{"\"positions\": {\"rule\": \"tokens\"}", media}}), "m");
  CHECK_EQ(text_of(read), "no fault");
  const std::string path = folder / "p.safetensors";
  const std::vector<float> pixels = {1, 2, 3, 4};
  const std::vector<float> sound = {1, 2, 3};
  const std::vector<uint8_t> real = {1, 1, 0}, hole = {1, 0, 1};
  const auto items = [&](const std::vector<int64_t>& at, const std::vector<uint8_t>& mask) {
    CHECK(circle::write_safetensors(
              {entry("pixels", "F32", {1, 4, 1}, pixels), entry("at", "I64", {1, 4, 2}, at),
               entry("sound", "F32", {1, 3, 1}, sound), entry("real", "BOOL", {1, 3}, mask)},
              path)
              .ok());
    return media_of(read.value(), circle::read_safetensors(path).value(), {});
  };
  const auto given = items({1, 0, -1, -1, 0, 0, 2, 0}, real);  // patches in any order, one of padding
  CHECK_EQ(text_of(given), "no fault");
  if (given.ok()) {
    const Item& image = given.value()[0][0];
    CHECK(image.sizes == Shape({1, 3}) && image.data.floats()[0] == 3 && image.data.floats()[1] == 1);
    CHECK(given.value()[1][0].sizes == Shape({2}));
  }
  CHECK(has(text_of(items({0, 0, 0, 0, 1, 0, 2, 0}, real)), "are no whole grid"));
  CHECK(has(text_of(items({5, 5, -1, -1, -1, -1, -1, -1}, real)), "are no whole grid"));
  CHECK(has(text_of(items({-1, -1, -1, -1, -1, -1, -1, -1}, real)), "all padding"));
  CHECK(has(text_of(items({0, 0, 1, 0, 0, 1, 1, 1}, hole)), "padding before its last frame"));
  CHECK(circle::write_safetensors({entry("smell", "F32", {1, 4, 1}, pixels)}, path).ok());
  CHECK(has(text_of(media_of(read.value(), circle::read_safetensors(path).value(), {})),
            "this bundle has no graphs for them"));
}

TEST(a_recording_is_compared_bit_for_bit) {
  const Folder folder;
  const std::string path = folder / "calls.safetensors";
  const std::vector<float> x = {1, 2}, y = {3};
  CHECK(circle::write_safetensors({entry("0|g|in|x", "F32", {2}, x), entry("0|g|out|y", "F32", {1}, y)}, path)
            .ok());
  auto replay = Replay::open(path);
  Tensor given = Tensor::zeros(Type::Float32, {2});
  given.floats()[0] = 1;
  given.floats()[1] = 2;
  CHECK(has(text_of(replay.value()->finish()), "made 0 calls, 1 are recorded"));
  const auto out = replay.value()->run("g", {{"x", &given}});
  CHECK(out.ok() && out.value().at("y").floats()[0] == 3 && replay.value()->finish().ok());
  CHECK(has(text_of(replay.value()->run("g", {{"x", &given}})), "behind the last recorded call"));
  const auto again = [&](const std::string& graph, const std::string& name) {
    return text_of(Replay::open(path).value()->run(graph, {{name, &given}}));
  };
  given.floats()[1] = 2.5f;
  CHECK(has(again("g", "x"), "E_REPLAY: call 0, graph 'g', input 'x': has 2.5"));
  CHECK(has(again("h", "x"), "runs graph 'h', recorded is 'g'"));
  CHECK(has(again("g", "z"), "was not recorded"));
  CHECK(circle::write_safetensors({entry("x", "F32", {2}, x)}, path).ok());
  CHECK(has(text_of(Replay::open(path)), "is no tensor of a recording"));
}
