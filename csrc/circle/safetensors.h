// SPDX-License-Identifier: Apache-2.0
// Weights files in the safetensors format: an 8-byte length, a JSON header, then the bytes of the tensors
// back to back. The file is mapped, never copied; which tensors are wanted is left to plan.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "circle/file.h"
#include "circle/ir.h"
#include "pyquant/status.h"

namespace pyquant::circle {

/// One tensor of a weights file. 4-bit and GGML data travel as U8.
struct WeightsEntry {
  std::string name;
  std::string dtype;  // "F32", "U8" ...
  std::vector<int64_t> shape;
  Bytes bytes;
};

struct Safetensors {
  std::string path;
  std::map<std::string, WeightsEntry> tensors;
  std::shared_ptr<const Mapping> mapping;
};

/// Maps and checks a weights file: header, ranges, overlaps, holes.
Result<Safetensors> read_safetensors(const std::string& path);
/// The same on bytes that the caller keeps alive.
Result<Safetensors> parse_safetensors(Bytes file, const std::string& what);
/// Writes a weights file, whole or not at all.
Status write_safetensors(const std::vector<WeightsEntry>& entries, const std::string& path);

/// The safetensors name of a Circle type ("F32"), "U8" for packed types, nullptr when there is none.
const char* safetensors_dtype(DType dtype);

}  // namespace pyquant::circle
