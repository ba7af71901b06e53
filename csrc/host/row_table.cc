// SPDX-License-Identifier: Apache-2.0
#include "host/row_table.h"

#include "host/fault.h"

namespace pyquant::host {
namespace {

template <class T>
T at(const circle::WeightsEntry& entry, int64_t index) {
  T value;
  std::memcpy(&value, entry.bytes.data + static_cast<size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

/// Numbers that a file can hold, and the type that it stores them in.
struct Numbers {
  const char* name;
  const char* stored;
};
constexpr Numbers kNumbers[] = {{"int8", "I8"}, {"uint8", "U8"}, {"int16", "I16"},
                                {"int4", "U8"}, {"uint4", "U8"}, {"float32", "F32"}};

const circle::WeightsEntry* find(const circle::Safetensors& file, const char* name) {
  const auto found = file.tensors.find(name);
  return found == file.tensors.end() ? nullptr : &found->second;
}

bool one_or_each(const circle::WeightsEntry* entry, const char* dtype, int64_t rows) {
  return entry && entry->dtype == dtype && (entry->shape.empty() || entry->shape == Shape{rows});
}

}  // namespace

Result<RowTable> RowTable::open(const Table& entry, const std::string& path) {
  RowTable table;
  table.entry_ = entry;
  PYQUANT_TRY_ASSIGN(table.file_, circle::read_safetensors(path));
  const bool four = entry.numbers == "int4" || entry.numbers == "uint4";
  const char* stored = nullptr;
  for (const Numbers& known : kNumbers) {
    if (entry.numbers == known.name) stored = known.stored;
  }
  if (!stored)
    return Fault{Code::E_BUNDLE_FILE, "has rows of " + entry.numbers + ", which no table has", path};
  table.rows_ = find(table.file_, "rows");
  const Shape shape{entry.rows, four ? entry.width / 2 : entry.width};
  if (!table.rows_ || table.rows_->dtype != stored || table.rows_->shape != shape) {
    return Fault{Code::E_BUNDLE_FILE,
                 "has no 'rows' of " + std::string(stored) + " " + shape_text(shape) +
                     ", as the manifest says; export the bundle again",
                 path};
  }
  if (entry.numbers == "float32") return table;
  table.scale_ = find(table.file_, "scale");
  table.zero_point_ = find(table.file_, "zero_point");
  if (!one_or_each(table.scale_, "F32", entry.rows) || !one_or_each(table.zero_point_, "I32", entry.rows)) {
    return Fault{Code::E_BUNDLE_FILE, "has no scale and zero_point, one or one for each row", path};
  }
  return table;
}

void RowTable::row(int64_t id, float* out) const {
  const int64_t width = entry_.width, first = id * width;
  if (!scale_) {
    std::memcpy(out, rows_->bytes.data + static_cast<size_t>(first) * 4, static_cast<size_t>(width) * 4);
    for (int64_t i = 0; i < width; ++i) out[i] *= entry_.factor;
    return;
  }
  const float scale = at<float>(*scale_, scale_->shape.empty() ? 0 : id);
  const auto zero = at<int32_t>(*zero_point_, zero_point_->shape.empty() ? 0 : id);
  const std::string& numbers = entry_.numbers;
  for (int64_t i = 0; i < width; ++i) {
    int32_t value = 0;
    if (numbers == "int16") value = at<int16_t>(*rows_, first + i);
    if (numbers == "int8") value = at<int8_t>(*rows_, first + i);
    if (numbers == "uint8") value = at<uint8_t>(*rows_, first + i);
    if (numbers == "int4" || numbers == "uint4") {
      const uint8_t both = at<uint8_t>(*rows_, (first + i) / 2);
      value = (first + i) % 2 ? both >> 4 : both & 15;
      if (numbers == "int4" && value > 7) value -= 16;
    }
    out[i] = static_cast<float>(value - zero) * scale * entry_.factor;
  }
}

Result<Tensor> RowTable::rows(const Tensor& ids) const {
  Shape shape = ids.shape;
  shape.push_back(entry_.width);
  Tensor made = Tensor::zeros(Type::Float32, shape);
  for (int64_t i = 0; i < ids.count(); ++i) {
    const int32_t id = ids.ints()[i];
    if (id < 0 || id >= entry_.rows) {
      return fault_of(Code::E_HOST_INPUT, "token " + std::to_string(id) + " is outside the table '" +
                                              entry_.name + "' of " + std::to_string(entry_.rows) + " rows");
    }
    row(id, made.floats() + i * entry_.width);
  }
  return made;
}

}  // namespace pyquant::host
