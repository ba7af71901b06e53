// SPDX-License-Identifier: Apache-2.0
// media_of: the tensors of a processor to items, one function for each form of tower.
#include <algorithm>
#include <cmath>

#include "host/media.h"

#include "host/fault.h"

namespace pyquant::host {
namespace {

Fault wrong(const std::string& name, const std::string& text) {
  return fault_of(Code::E_HOST_INPUT, "'" + name + "' " + text);
}

/// Integers or floats of a file as int64.
Result<std::vector<int64_t>> whole_numbers(const circle::WeightsEntry& entry) {
  const int64_t count = count_of(entry.shape);
  std::vector<int64_t> found(static_cast<size_t>(count));
  for (size_t i = 0; i < found.size(); ++i) {
    if (entry.dtype == "I64") std::memcpy(&found[i], entry.bytes.data + 8 * i, 8);
    if (entry.dtype == "I32") {
      int32_t value = 0;
      std::memcpy(&value, entry.bytes.data + 4 * i, 4);
      found[i] = value;
    }
    if (entry.dtype == "BOOL" || entry.dtype == "U8") found[i] = entry.bytes.data[i];
  }
  if (entry.dtype == "I64" || entry.dtype == "I32" || entry.dtype == "BOOL" || entry.dtype == "U8")
    return found;
  return wrong(entry.name, "is " + entry.dtype + ", expected integers");
}

/// Rows of floats, checked.
Result<Tensor> rows_of(const circle::WeightsEntry& entry) {
  if (entry.dtype != "F32") {
    return wrong(entry.name,
                 "is " + entry.dtype + ", expected F32, as a processor scales and normalizes bytes");
  }
  if (entry.shape.size() < 2)
    return wrong(entry.name, "is " + shape_text(entry.shape) + ", expected rows of numbers");
  Tensor made = Tensor::zeros(Type::Float32, entry.shape);
  std::memcpy(made.bytes.data(), entry.bytes.data, made.bytes.size());
  for (int64_t i = 0; i < made.count(); ++i) {
    if (!std::isfinite(made.floats()[i])) {
      return wrong(entry.name, "has " + std::to_string(made.floats()[i]) + " at " + std::to_string(i) +
                                   "; a graph takes finite numbers only");
    }
  }
  return made;
}

/// Rows `start` to `stop` of (rows, width).
Tensor some_rows(const Tensor& all, int64_t start, int64_t stop) {
  Tensor made = Tensor::zeros(Type::Float32, {stop - start, all.shape.back()});
  const size_t line = static_cast<size_t>(all.shape.back()) * 4;
  std::memcpy(made.bytes.data(), all.bytes.data() + static_cast<size_t>(start) * line, made.bytes.size());
  return made;
}

Result<std::vector<Item>> grids(const Media& media, int64_t merge, const Tensor& data,
                                const std::vector<std::vector<int64_t>>& sizes) {
  std::vector<Item> found;
  int64_t start = 0;
  const int64_t rows = data.shape.size() == 2 ? data.shape[0] : -1;
  for (const auto& size : sizes) {
    if (size.size() != 3 || *std::min_element(size.begin(), size.end()) < 1 || size[1] % merge ||
        size[2] % merge || *std::max_element(size.begin(), size.end()) > 1 << 20) {
      return wrong(media.sizes, "has [" + list_text(size) +
                                    "], expected frames, height and width of at least 1, "
                                    "the sides multiples of " +
                                    std::to_string(merge));
    }
    const int64_t count = size[0] * size[1] * size[2];
    if (start + count > rows) break;
    found.push_back({size, some_rows(data, start, start + count)});
    start += count;
  }
  if (found.size() != sizes.size() || start != rows) {
    return wrong(media.data, "is " + shape_text(data.shape) + ", which are not the patches of " +
                                 std::to_string(sizes.size()) + " item(s) of '" + media.sizes + "' in turn");
  }
  return found;
}

/// One image of patches at positions (x, y), (-1, -1) for padding, in any order.
Result<Item> placed(const Media& media, const Tensor& data, int64_t first, const int64_t* at,
                    int64_t patches) {
  int64_t height = 0, width = 0, count = 0;
  for (int64_t i = 0; i < patches; ++i) {
    if (at[2 * i] == -1 && at[2 * i + 1] == -1) continue;
    width = std::max(width, at[2 * i] + 1);
    height = std::max(height, at[2 * i + 1] + 1);
    ++count;
  }
  const bool whole = count && height <= patches && width <= patches && height * width == count;
  std::vector<uint8_t> filled(static_cast<size_t>(count), 0);
  Item item{{height, width}, Tensor::zeros(Type::Float32, {count, data.shape.back()})};
  const size_t line = static_cast<size_t>(data.shape.back()) * 4;
  for (int64_t i = 0; i < patches; ++i) {
    const int64_t x = at[2 * i], y = at[2 * i + 1], place = y * width + x;
    if (x == -1 && y == -1) continue;
    if (!whole || x < 0 || y < 0 || filled[static_cast<size_t>(place)]++) {
      return wrong(media.sizes, "has " + std::to_string(count) + " patches, which are no whole grid of " +
                                    std::to_string(height) + " x " + std::to_string(width));
    }
    std::memcpy(item.data.bytes.data() + static_cast<size_t>(place) * line,
                data.bytes.data() + static_cast<size_t>(first + i) * line, line);
  }
  if (!count) return wrong(media.sizes, "has an image that is all padding; leave it out");
  return item;
}

Result<std::vector<Item>> places(const Media& media, const Tensor& data, const std::vector<int64_t>& at) {
  const int64_t patches = data.shape.size() > 1 ? data.shape[data.shape.size() - 2] : 0;
  const int64_t rows = patches ? count_of(data.shape) / std::max<int64_t>(1, data.shape.back()) : 0;
  if (data.shape.size() < 3 || rows * 2 != static_cast<int64_t>(at.size())) {
    return wrong(media.data, "is " + shape_text(data.shape) +
                                 ", expected images, patches, pixels of a patch; and '" + media.sizes +
                                 "' images, patches, 2");
  }
  std::vector<Item> found;
  for (int64_t first = 0; first < rows; first += patches) {
    PYQUANT_TRY_ASSIGN(Item item, placed(media, data, first, at.data() + 2 * first, patches));
    found.push_back(std::move(item));
  }
  return found;
}

/// Images without positions, line by line, of the sizes that a caller names.
Result<std::vector<Item>> lines(const Media& media, const Tensor& data,
                                const std::vector<std::vector<int64_t>>& sizes) {
  std::vector<Item> found;
  const int64_t rows = data.count() / std::max<int64_t>(1, data.shape.back());
  int64_t start = 0;
  for (const auto& size : sizes) {
    const bool fits = size.size() == 2 && size[0] > 0 && size[1] > 0 && size[0] <= rows && size[1] <= rows;
    const int64_t count = fits ? size[0] * size[1] : 0;
    if (!fits || start + count > rows) break;
    found.push_back({size, some_rows(data, start, start + count)});
    start += count;
  }
  if (found.size() == sizes.size() && start == rows) return found;
  return wrong(media.data, "is " + shape_text(data.shape) + ", which are not the patches of " +
                               std::to_string(sizes.size()) + " image(s) of height x width in turn");
}

Result<std::vector<Item>> frames(const Media& media, const Tensor& data, const std::vector<int64_t>& mask) {
  if (data.shape.size() != 3 || static_cast<int64_t>(mask.size()) != data.shape[0] * data.shape[1]) {
    return wrong(media.data, "is " + shape_text(data.shape) + ", expected clips, frames, width; and '" +
                                 media.sizes + "' clips, frames");
  }
  std::vector<Item> found;
  const int64_t length = data.shape[1];
  for (int64_t clip = 0; clip < data.shape[0]; ++clip) {
    int64_t end = 0, real = 0;
    for (int64_t i = 0; i < length; ++i) {
      if (!mask[static_cast<size_t>(clip * length + i)]) continue;
      end = i + 1;
      ++real;
    }
    if (real != end) {
      return wrong(media.sizes, "of clip " + std::to_string(clip) +
                                    " has padding before its last frame; a clip is its first frames");
    }
    if (end) found.push_back({{end}, some_rows(data, clip * length, clip * length + end)});
  }
  return found;
}

}  // namespace

Result<Given> media_of(const Manifest& manifest, const circle::Safetensors& file,
                       const std::vector<std::vector<int64_t>>& named) {
  Given given(manifest.media.size());
  bool used = named.empty();
  for (size_t k = 0; k < manifest.media.size(); ++k) {
    const Media& media = manifest.media[k];
    const auto data = file.tensors.find(media.data), sizes = file.tensors.find(media.sizes);
    if (data == file.tensors.end() || !count_of(data->second.shape)) continue;
    const Tower* tower = manifest.tower(media.tower);
    if (!tower) {
      return wrong(media.data, "are " + media.name + " items, and this bundle has no graphs for them");
    }
    PYQUANT_TRY_ASSIGN(const Tensor rows, rows_of(data->second));
    const bool own = sizes != file.tensors.end();
    if (!own && (used || tower->form == Form::Frames)) {
      return wrong(media.data, "have no '" + media.sizes + "' beside them in " + file.path);
    }
    std::vector<int64_t> numbers;
    if (own) {
      PYQUANT_TRY_ASSIGN(numbers, whole_numbers(sizes->second));
    } else {
      used = true;
    }
    Result<std::vector<Item>> items = std::vector<Item>();
    if (tower->form == Form::Grids) {
      std::vector<std::vector<int64_t>> each = named;
      if (own) each.clear();
      for (size_t i = 0; i + 3 <= numbers.size(); i += 3)
        each.push_back({numbers[i], numbers[i + 1], numbers[i + 2]});
      items = grids(media, tower->unit, rows, each);
    } else if (tower->form == Form::Places) {
      items = own ? places(media, rows, numbers) : lines(media, rows, named);
    } else {
      items = frames(media, rows, numbers);
    }
    if (!items.ok()) return items.fault();
    given[k] = std::move(items).value();
  }
  if (!used) {
    return fault_of(Code::E_HOST_INPUT,
                    "grids are given, and " + file.path + " has no media that lack their sizes");
  }
  return given;
}

}  // namespace pyquant::host
