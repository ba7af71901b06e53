// SPDX-License-Identifier: Apache-2.0
// Weights files: what is written is read, and the format's rules hold.
#include "circle/safetensors.h"

#include "check.h"
#include "sample.h"

using namespace pyquant::circle;  // NOLINT

TEST(weights_round_trip) {
  const sample::TempFolder folder;
  const std::string path = folder / "w.safetensors";
  const std::vector<uint8_t> a = {1, 2, 3}, b = {4, 5, 6, 7};
  CHECK(write_safetensors({{"a", "U8", {3}, sample::bytes_of(a)},
                           {"none", "F32", {0, 4}, {}},
                           {"b \"quoted\"", "F32", {}, sample::bytes_of(b)}},
                          path)
            .ok());
  const auto read = read_safetensors(path);
  CHECK_MSG(read.ok(), read.ok() ? "" : read.fault().text());
  const auto& tensors = read.value().tensors;
  CHECK_EQ(tensors.size(), size_t{3});
  CHECK_EQ(int{tensors.at("a").bytes.data[2]}, 3);
  CHECK_EQ(tensors.at("b \"quoted\"").dtype, "F32");
  CHECK_EQ(tensors.at("none").bytes.size, size_t{0});
}

TEST(weights_metadata_is_ignored) {
  std::string header =
      R"({"__metadata__": {"format": "pt"}, "w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  file += header + "xy";
  const auto read = parse_safetensors(sample::bytes_of(file), "w");
  CHECK(read.ok());
  CHECK_EQ(read.value().tensors.size(), size_t{1});
}

TEST(weights_dtypes_exist_for_every_sized_type) {
  CHECK_EQ(std::string(safetensors_dtype(DType::BFLOAT16)), "BF16");
  CHECK_EQ(std::string(safetensors_dtype(DType::UINT4)), "U8");
  CHECK(safetensors_dtype(DType::STRING) == nullptr);
}
