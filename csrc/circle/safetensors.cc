// SPDX-License-Identifier: Apache-2.0
// Reads weights files: the header is parsed strictly, and every byte after it must belong to exactly one
// tensor.
#include "circle/safetensors.h"

#include <algorithm>
#include <cstring>

#include "circle/json.h"

namespace pyquant::circle {
namespace {

using json::Kind;
using json::Value;

constexpr uint64_t kMostHeader = 100'000'000;  // the limit of the format's own reader

struct ElementSize {
  const char* name;
  int bits;
};
constexpr ElementSize kSizes[] = {{"BOOL", 8}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
                                  {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
                                  {"U32", 32}, {"F32", 32}, {"F64", 64}, {"I64", 64},    {"U64", 64}};

const ElementSize* size_of(const std::string& dtype) {
  for (const ElementSize& size : kSizes) {
    if (dtype == size.name) return &size;
  }
  return nullptr;
}

Fault bad(Code code, const std::string& what, const std::string& name, const std::string& message) {
  return {code, message, name.empty() ? what : what + ", tensor '" + name + "'"};
}

// The product of the dimensions x the element's bytes; false when it cannot be the size of any file.
bool byte_count(const std::vector<int64_t>& shape, int bits, uint64_t& out) {
  constexpr uint64_t kMost = uint64_t{1} << 62;
  out = static_cast<uint64_t>(bits) / 8;
  for (int64_t dim : shape) {
    if (dim > 0 && out > kMost / static_cast<uint64_t>(dim)) return false;
    out *= static_cast<uint64_t>(dim);
  }
  return true;
}

Result<WeightsEntry> entry_of(const std::string& what, const std::string& name, const Value& value,
                              Bytes data) {
  const Value* dtype = value.find("dtype");
  const Value* shape = value.find("shape");
  const Value* offsets = value.find("data_offsets");
  if (!dtype || dtype->kind != Kind::String || !shape || shape->kind != Kind::Array || !offsets ||
      offsets->kind != Kind::Array || offsets->items.size() != 2) {
    return bad(Code::E_WEIGHTS_FORMAT, what, name, "expected dtype, shape and two data_offsets");
  }
  WeightsEntry entry;
  entry.name = name;
  entry.dtype = dtype->text;
  for (const Value& item : shape->items) {
    int64_t dim = 0;
    if (!item.as_int(dim) || dim < 0) {
      return bad(Code::E_WEIGHTS_FORMAT, what, name, "shape is not a list of sizes");
    }
    entry.shape.push_back(dim);
  }
  int64_t begin = 0, end = 0;
  if (!offsets->items[0].as_int(begin) || !offsets->items[1].as_int(end) || begin < 0 || end < begin ||
      static_cast<uint64_t>(end) > data.size) {
    return bad(Code::E_WEIGHTS_RANGE, what, name,
               "data_offsets [" + offsets->items[0].text + ", " + offsets->items[1].text +
                   "] do not lie within the " + std::to_string(data.size) +
                   " bytes of data; is the file truncated?");
  }
  const ElementSize* size = size_of(entry.dtype);
  if (!size) return bad(Code::E_WEIGHTS_FORMAT, what, name, "unknown dtype '" + entry.dtype + "'");
  uint64_t expected = 0;
  const auto seen = static_cast<uint64_t>(end - begin);
  if (!byte_count(entry.shape, size->bits, expected) || expected != seen) {
    return bad(Code::E_WEIGHTS_RANGE, what, name,
               "has " + std::to_string(seen) + " bytes, its shape needs " + std::to_string(expected));
  }
  entry.bytes = {data.data + begin, static_cast<size_t>(seen)};
  return entry;
}

Status check_cover(const Safetensors& weights, Bytes data) {
  std::vector<const WeightsEntry*> order;
  for (const auto& [name, entry] : weights.tensors) {
    if (entry.bytes.size > 0) order.push_back(&entry);
  }
  std::sort(order.begin(), order.end(),
            [](const WeightsEntry* a, const WeightsEntry* b) { return a->bytes.data < b->bytes.data; });
  const uint8_t* cursor = data.data;
  for (const WeightsEntry* entry : order) {
    if (entry->bytes.data != cursor) {
      return bad(Code::E_WEIGHTS_OVERLAP, weights.path, entry->name,
                 entry->bytes.data < cursor ? "overlaps another tensor" : "leaves a hole before it");
    }
    cursor += entry->bytes.size;
  }
  if (cursor != data.data + data.size) {
    return bad(Code::E_WEIGHTS_OVERLAP, weights.path, "", "bytes at the end belong to no tensor");
  }
  return {};
}

}  // namespace

Result<Safetensors> parse_safetensors(Bytes file, const std::string& what) {
  Safetensors weights;
  weights.path = what;
  uint64_t length = 0;
  if (file.size < 8) {
    return bad(Code::E_WEIGHTS_FORMAT, what, "",
               "has " + std::to_string(file.size) + " bytes, a safetensors file has at least 8");
  }
  for (int i = 7; i >= 0; --i) length = length << 8 | file.data[i];  // little-endian on every machine
  if (length > kMostHeader || length > file.size - 8) {
    return bad(Code::E_WEIGHTS_FORMAT, what, "",
               "claims a header of " + std::to_string(length) + " bytes in a file of " +
                   std::to_string(file.size) + "; is it a safetensors file?");
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data) + 8, static_cast<size_t>(length));
  PYQUANT_TRY_ASSIGN(const Value root, json::parse(text, what + " header"));
  if (root.kind != Kind::Object) return bad(Code::E_WEIGHTS_FORMAT, what, "", "the header is not an object");
  const Bytes data = {file.data + 8 + length, file.size - 8 - static_cast<size_t>(length)};
  for (size_t i = 0; i < root.keys.size(); ++i) {
    if (root.keys[i] == "__metadata__") continue;
    PYQUANT_TRY_ASSIGN(WeightsEntry entry, entry_of(what, root.keys[i], root.items[i], data));
    weights.tensors.emplace(root.keys[i], std::move(entry));
  }
  PYQUANT_TRY(check_cover(weights, data));
  return weights;
}

Result<Safetensors> read_safetensors(const std::string& path) {
  PYQUANT_TRY_ASSIGN(auto mapping, Mapping::open(path));
  PYQUANT_TRY_ASSIGN(Safetensors weights, parse_safetensors(mapping->bytes(), path));
  weights.mapping = std::move(mapping);
  return weights;
}

Status write_safetensors(const std::vector<WeightsEntry>& entries, const std::string& path) {
  std::string header = "{";
  uint64_t offset = 0;
  for (const WeightsEntry& entry : entries) {
    if (offset > 0 || header.size() > 1) header += ',';
    json::append_quoted(header, entry.name);
    header += ":{\"dtype\":\"" + entry.dtype + "\",\"shape\":[";
    for (size_t i = 0; i < entry.shape.size(); ++i) header += (i ? "," : "") + std::to_string(entry.shape[i]);
    header += "],\"data_offsets\":[" + std::to_string(offset) + ",";
    offset += entry.bytes.size;
    header += std::to_string(offset) + "]}";
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');  // data starts 8-byte aligned
  uint8_t length[8];
  for (int i = 0; i < 8; ++i)
    length[i] = static_cast<uint8_t>(static_cast<uint64_t>(header.size()) >> (8 * i));
  PYQUANT_TRY_ASSIGN(auto file, AtomicFile::create(path));
  PYQUANT_TRY(file->write({length, sizeof(length)}));
  PYQUANT_TRY(file->write({reinterpret_cast<const uint8_t*>(header.data()), header.size()}));
  for (const WeightsEntry& entry : entries) PYQUANT_TRY(file->write(entry.bytes));
  return file->commit();
}

const char* safetensors_dtype(DType dtype) {
  switch (dtype) {
    case DType::FLOAT32:
      return "F32";
    case DType::FLOAT16:
      return "F16";
    case DType::BFLOAT16:
      return "BF16";
    case DType::FLOAT64:
      return "F64";
    case DType::INT8:
      return "I8";
    case DType::INT16:
      return "I16";
    case DType::UINT16:
      return "U16";
    case DType::INT32:
      return "I32";
    case DType::UINT32:
      return "U32";
    case DType::INT64:
      return "I64";
    case DType::UINT64:
      return "U64";
    case DType::BOOL:
      return "BOOL";
    case DType::UINT8:
    case DType::INT4:
    case DType::UINT4:
    case DType::GGML_Q4_0:
    case DType::GGML_Q8_0:
      return "U8";
    default:
      return nullptr;
  }
}

}  // namespace pyquant::circle
