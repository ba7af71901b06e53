// SPDX-License-Identifier: Apache-2.0
// The new tokens of a call, as graphs are given them: each row from place 0 on, zeros behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyquant::host {

constexpr int kAxes = 3;  // of positions: time, height, width; text has the same on all

struct Prompt {
  size_t batch = 0, width = 0;
  std::vector<int64_t> ids;        // (batch, width), as are the others
  std::vector<uint8_t> real;       // where a token is
  std::vector<int64_t> positions;  // (axes, batch, width)
  std::vector<int64_t> deltas;     // (batch): from the tokens of a row to the position after them
  std::vector<int32_t> media;      // which of the manifest's media a place is of, -1: text
  std::vector<int32_t> tower;      // whose row a place holds, -1: text
  std::vector<int64_t> row;        // which row of it
  std::vector<int64_t> runs;       // which run of media that see each other, -1: none

  static Prompt empty(size_t batch, size_t width);
  /// Places start to stop, in a graph of `length` places.
  Prompt part(size_t start, size_t stop, size_t length) const;
  /// Tokens of each row.
  std::vector<int64_t> counts() const;
  bool has_rows() const;
};

}  // namespace pyquant::host
