// SPDX-License-Identifier: Apache-2.0
#include "host/prompt.h"

#include <algorithm>

namespace pyquant::host {
namespace {

template <class T>
void cut(const std::vector<T>& from, size_t rows, size_t width, size_t start, size_t stop, size_t length,
         std::vector<T>& to) {
  for (size_t row = 0; row < rows; ++row) {
    std::copy(from.begin() + static_cast<std::ptrdiff_t>(row * width + start),
              from.begin() + static_cast<std::ptrdiff_t>(row * width + stop),
              to.begin() + static_cast<std::ptrdiff_t>(row * length));
  }
}

}  // namespace

Prompt Prompt::empty(size_t batch, size_t width) {
  Prompt made;
  made.batch = batch;
  made.width = width;
  const size_t places = batch * width;
  made.ids.assign(places, 0);
  made.real.assign(places, 0);
  made.positions.assign(kAxes * places, 0);
  made.deltas.assign(batch, 0);
  made.media.assign(places, -1);
  made.tower.assign(places, -1);
  made.row.assign(places, 0);
  made.runs.assign(places, -1);
  return made;
}

Prompt Prompt::part(size_t start, size_t stop, size_t length) const {
  Prompt made = empty(batch, length);
  made.deltas = deltas;
  cut(ids, batch, width, start, stop, length, made.ids);
  cut(real, batch, width, start, stop, length, made.real);
  cut(positions, kAxes * batch, width, start, stop, length, made.positions);
  cut(media, batch, width, start, stop, length, made.media);
  cut(tower, batch, width, start, stop, length, made.tower);
  cut(row, batch, width, start, stop, length, made.row);
  cut(runs, batch, width, start, stop, length, made.runs);
  return made;
}

std::vector<int64_t> Prompt::counts() const {
  std::vector<int64_t> found(batch, 0);
  for (size_t i = 0; i < real.size(); ++i) found[i / width] += real[i];
  return found;
}

bool Prompt::has_rows() const {
  return std::any_of(tower.begin(), tower.end(), [](int32_t each) { return each >= 0; });
}

}  // namespace pyquant::host
