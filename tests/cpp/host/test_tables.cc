// SPDX-License-Identifier: Apache-2.0
// Slots of rings, masks, rotary tables, positions by grids, and places of media, against values written out
// by hand.
#include <cmath>

#include "check.h"
#include "host/masks.h"
#include "host/media.h"
#include "host/positions.h"
#include "host/rotary.h"
#include "toy.h"

using namespace toy;  // NOLINT

namespace {

Prompt prompt_of(const std::vector<int64_t>& ids, size_t real) {
  Prompt prompt = Prompt::empty(1, ids.size());
  prompt.ids = ids;
  for (size_t i = 0; i < real; ++i) prompt.real[i] = 1;
  return prompt;
}

/// A row of a mask: 'x' where a query may look.
std::string row_of(const Tensor& mask, int64_t row) {
  std::string text;
  const int64_t keys = mask.shape[3];
  for (int64_t k = 0; k < keys; ++k) text += mask.floats()[row * keys + k] == 0.0f ? 'x' : '.';
  return text;
}

/// The toy with images (id 7) of grids merged 2 x 2, and videos (id 8) frame by frame.
Manifest with_grids() {
  const std::string media =
      R"("positions": {"rule": "grids", "merge": 2},
         "media": [{"name": "image", "token_id": 7, "tower": "vision", "data": "pixels", "sizes": "grids"},
                   {"name": "video", "token_id": 8, "tower": "vision", "data": "frames", "sizes": "times",
                    "by_frame": true}],
         "towers": [{"name": "vision", "form": "grids", "merge": 2, "input": "p", "outputs": ["rows"]}],
         "together": {"media": ["image"], "variants": ["near"], "bounded": true})";
  auto read = parse_manifest(manifest_text({{"\"positions\": {\"rule\": \"tokens\"}", media}}), "m");
  return std::move(read).value();
}

}  // namespace

TEST(a_slot_holds_the_last_place_that_is_its_own) {
  CHECK_EQ(place_of_slot(0, 3, 0), int64_t{-3});
  CHECK_EQ(place_of_slot(1, 3, 0), int64_t{0});
  CHECK(place_of_slot(1, 3, 1) < 0);
  CHECK_EQ(place_of_slot(7, 3, 0), int64_t{6});
  CHECK_EQ(place_of_slot(7, 3, 1), int64_t{4});
  CHECK_EQ(place_of_slot(7, 3, 2), int64_t{5});
}

TEST(masks_of_a_window_a_past_and_bands) {
  const Manifest read = manifest();
  Cache cache = Cache::empty(read);
  const Prompt prompt = prompt_of({1, 2, 3, 0}, 3);
  Tensor mask = mask_of(read, 0, prompt, cache, false, 0);
  CHECK_EQ(row_of(mask, 0) + " " + row_of(mask, 2) + " " + row_of(mask, 3), "x... xxx. .xx.");
  mask = mask_of(read, 1, prompt, cache, false, 0);
  CHECK_EQ(row_of(mask, 2), "xxx.");
  cache.lengths = {5};
  mask = mask_of(read, 0, prompt, cache, true, 0);  // slots hold places 4 and 3
  CHECK_EQ(row_of(mask, 0) + " " + row_of(mask, 1), "xxx... x.xx..");
  cache.lengths = {0};
  mask = mask_of(read, 0, prompt, cache, false, 2);  // blocks of 2: columns of the block before and one's own
  CHECK_EQ(row_of(mask, 1) + " " + row_of(mask, 2), "..xx xxx.");
}

TEST(rotary_tables_are_rounded_once) {
  Prompt prompt = prompt_of({1, 2}, 2);
  prompt.positions = {0, 3, 0, 50, 0, 7};
  const Rotary rotary{{0.1f, 0.7f}, 1.5f, {1, 2}};
  const RotaryTensors made = rotary_tables(rotary, prompt);
  const float first = 50.0f * 0.1f, second = 7.0f * 0.7f;
  CHECK_EQ(made.cos.floats()[4], static_cast<float>(std::cos(static_cast<double>(first))) * 1.5f);
  CHECK_EQ(made.cos.floats()[7], static_cast<float>(std::cos(static_cast<double>(second))) * 1.5f);
  CHECK_EQ(made.signed_sin.floats()[5], -made.signed_sin.floats()[7]);
  CHECK(std::signbit(made.signed_sin.floats()[0]) && !std::signbit(made.signed_sin.floats()[2]));
}

TEST(positions_by_grids) {
  const Manifest read = with_grids();
  Prompt prompt = prompt_of({1, 7, 7, 2, 8, 8, 3, 0}, 7);
  mark_media(read, prompt);
  Given given(2);
  given[0].push_back({{1, 2, 4}, {}});  // two rows side by side
  given[1].push_back({{2, 2, 2}, {}});  // two frames of one row
  CHECK(place(read, given, {10}, {-2}, prompt).ok());
  const std::vector<int64_t> time = {8, 9, 9, 11, 12, 13, 14, 0}, width = {8, 9, 10, 11, 12, 13, 14, 0};
  CHECK(std::vector<int64_t>(prompt.positions.begin(), prompt.positions.begin() + 8) == time);
  CHECK(std::vector<int64_t>(prompt.positions.begin() + 16, prompt.positions.end()) == width);
  CHECK_EQ(prompt.deltas[0], int64_t{-2});
  given[0].clear();
  const Status fault = place(read, given, {0}, {0}, prompt);
  CHECK_MSG(
      !fault.ok() && fault.fault().text().find("row 0 has 2 image tokens at place 1 and no item is left") !=
                         std::string::npos,
      fault.ok() ? "" : fault.fault().text());
}

TEST(media_find_their_rows_and_see_each_other) {
  const Manifest read = with_grids();
  Prompt prompt = prompt_of({7, 1, 7, 7, 8, 0}, 5);
  mark_media(read, prompt);
  CHECK(prompt.runs == std::vector<int64_t>({0, -1, 1, 1, -1, -1}));
  CHECK(mark_rows(read, {3, 1}, prompt).ok());
  CHECK(prompt.row == std::vector<int64_t>({0, 0, 1, 2, 3, 0}));
  CHECK(prompt.tower == std::vector<int32_t>({0, -1, 0, 0, 0, -1}));
  CHECK(!mark_rows(read, {2, 1}, prompt).ok());
  Prompt wide = prompt_of({7, 7, 7, 7, 7, 1}, 6);
  mark_media(read, wide);
  const Tensor mask = mask_of(read, 0, wide, Cache::empty(read), false, 0);
  CHECK_EQ(row_of(mask, 0) + " " + row_of(mask, 4) + " " + row_of(mask, 5), "xxxxx. ..xxx. ...xxx");
}

TEST(tensors_on_a_grid) {
  Tensor real = Tensor::zeros(Type::Float32, {3});
  const float values[] = {-1.5f, 0.25f, 1e9f};
  std::memcpy(real.floats(), values, sizeof(values));
  Tensor stored;
  stored.type = Type::UInt8;
  stored.shape = {3};
  stored.grid = {0.5f, 10};
  quantize(real, Type::UInt8, stored.grid, false, stored.bytes);
  CHECK(stored.bytes == std::vector<uint8_t>({7, 11, 255}));
  CHECK_EQ(stored.as_floats().floats()[1], 0.5f);
  CHECK_EQ(int{stored.zeros_like({2}).bytes[1]}, 10);
  const Tensor both = joined({&stored, &real}, 0);  // unequal grids: float32
  CHECK_EQ(int{both.type == Type::Float32}, 1);
  CHECK_EQ(both.floats()[4], 0.25f);
}
