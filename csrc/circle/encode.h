// SPDX-License-Identifier: Apache-2.0
// A model as the head of a Circle file: every table of the flatbuffer, with the positions of the constants
// still open. Positions of the constants, and the writing, are left to write.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "circle/ir.h"
#include "pyquant/status.h"

namespace pyquant::circle {

/// The finished tables. slots[k] is where buffer `buffers[k]` has its data's position; patch() fills it in.
struct Head {
  struct Slot {
    uint32_t buffer;
    size_t data;    // position of the uoffset of Buffer.data; inline layout
    size_t offset;  // positions of Buffer.offset and Buffer.size; external layout
    size_t size;
  };
  std::vector<uint8_t> bytes;
  std::vector<Slot> slots;
  bool external = false;
};

/// Builds the head. With `external`, constants are addressed by Buffer.offset/size, else as vectors of the
/// flatbuffer.
Result<Head> encode_head(const Model& model, bool external);

}  // namespace pyquant::circle
