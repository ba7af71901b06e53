// SPDX-License-Identifier: Apache-2.0
#include "host/positions.h"

#include <algorithm>

#include "host/fault.h"

namespace pyquant::host {
namespace {

/// Items of one of the media, as far as they are used; with several frames, frame by frame.
struct Supply {
  std::vector<std::vector<int64_t>> grids;
  size_t next = 0;
};

std::vector<Supply> supplies(const Manifest& manifest, const Given& given) {
  std::vector<Supply> found(manifest.media.size());
  for (size_t i = 0; i < given.size() && i < found.size(); ++i) {
    for (const Item& item : given[i]) {
      if (!manifest.media[i].by_frame) found[i].grids.push_back(item.sizes);
      for (int64_t frame = 0; manifest.media[i].by_frame && frame < item.sizes[0]; ++frame) {
        found[i].grids.push_back({1, item.sizes[1], item.sizes[2]});
      }
    }
  }
  return found;
}

class Walk {
 public:
  Walk(const Manifest& manifest, Prompt& prompt, std::vector<Supply>& supply)
      : manifest_(manifest), prompt_(prompt), supply_(supply) {}

  /// One row from position `start` on.
  Status row(size_t row, int64_t start) {
    next_ = start;
    const size_t first = row * prompt_.width;
    for (size_t place = 0; place < prompt_.width && prompt_.real[first + place];) {
      const int32_t media = prompt_.media[first + place];
      if (media < 0) {
        set(first + place++, {next_, next_, next_});
        ++next_;
        continue;
      }
      size_t left = 0;  // places of this run
      while (place + left < prompt_.width && prompt_.real[first + place + left] &&
             prompt_.media[first + place + left] == media) {
        ++left;
      }
      PYQUANT_TRY(item(row, place, left, static_cast<size_t>(media)));
      place += taken_;
    }
    return {};
  }

  int64_t next() const { return next_; }

 private:
  void set(size_t at, const std::vector<int64_t>& position) {
    for (size_t axis = 0; axis < kAxes; ++axis) {
      prompt_.positions[axis * prompt_.batch * prompt_.width + at] = position[axis];
    }
  }

  /// The item whose first row is at `place`, `left` places before the end of the run.
  Status item(size_t row, size_t place, size_t left, size_t media) {
    Supply& supply = supply_[media];
    const std::string seen = "row " + std::to_string(row) + " has " + std::to_string(left) + " " +
                             manifest_.media[media].name + " tokens at place " + std::to_string(place);
    if (supply.next == supply.grids.size()) {
      return fault_of(Code::E_HOST_INPUT,
                      seen + " and no item is left for them; give one for each of its runs");
    }
    const auto& grid = supply.grids[supply.next++];
    const int64_t merge = manifest_.grid_merge, height = grid[1] / merge, width = grid[2] / merge;
    const int64_t frame = height * width, tokens = grid[0] * frame;
    if (tokens < 1 || tokens > static_cast<int64_t>(left)) {
      return fault_of(Code::E_HOST_INPUT, seen + ", but the grid " + list_text(grid) + " merged by " +
                                              std::to_string(merge) + " makes " + std::to_string(tokens));
    }
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t within = i % frame;
      set(row * prompt_.width + place + static_cast<size_t>(i),
          {next_ + i / frame, next_ + within / width, next_ + within % width});
    }
    next_ += std::max(grid[1], grid[2]) / merge;
    taken_ = static_cast<size_t>(tokens);
    return {};
  }

  const Manifest& manifest_;
  Prompt& prompt_;
  std::vector<Supply>& supply_;
  int64_t next_ = 0;
  size_t taken_ = 0;
};

}  // namespace

Status place(const Manifest& manifest, const Given& given, const std::vector<int64_t>& lengths,
             const std::vector<int64_t>& deltas, Prompt& prompt) {
  prompt.deltas = deltas;
  const size_t places = prompt.batch * prompt.width;
  if (!manifest.grid_merge) {
    for (size_t i = 0; i < places; ++i) {
      const size_t row = i / prompt.width;
      const int64_t position = lengths[row] + deltas[row] + static_cast<int64_t>(i % prompt.width);
      for (size_t axis = 0; axis < kAxes; ++axis) prompt.positions[axis * places + i] = position;
    }
    return {};
  }
  std::vector<Supply> supply = supplies(manifest, given);
  const std::vector<int64_t> counts = prompt.counts();
  Walk walk(manifest, prompt, supply);
  for (size_t row = 0; row < prompt.batch; ++row) {
    const int64_t start = lengths[row] + deltas[row];
    PYQUANT_TRY(walk.row(row, start));
    // After an item the next position may lie below the last one's: what counts is the largest there is.
    int64_t largest = -1;
    for (size_t axis = 0; axis < kAxes; ++axis) {
      for (int64_t i = 0; i < counts[row]; ++i) {
        largest =
            std::max(largest, prompt.positions[axis * places + row * prompt.width + static_cast<size_t>(i)]);
      }
    }
    prompt.deltas[row] += largest + 1 - counts[row] - start;
  }
  for (size_t i = 0; i < supply.size(); ++i) {
    if (const size_t left = supply[i].grids.size() - supply[i].next; left) {
      return fault_of(Code::E_HOST_INPUT, std::to_string(left) + " more " + manifest.media[i].name +
                                              " item(s) than the prompt has runs of its tokens");
    }
  }
  return {};
}

}  // namespace pyquant::host
