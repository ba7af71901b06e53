// SPDX-License-Identifier: Apache-2.0
#include "host/replay.h"

namespace pyquant::host {
namespace {

constexpr size_t kMostCalls = 1 << 20;

struct Stored {
  const char* name;
  Type type;
};
constexpr Stored kStored[] = {
    {"F32", Type::Float32}, {"I32", Type::Int32}, {"I64", Type::Int64}, {"BOOL", Type::Bool}};

const char* stored_name(Type type) { return kStored[static_cast<size_t>(type)].name; }

Fault differs(const std::string& text, const std::string& where) {
  return Fault{Code::E_REPLAY, text, where};
}

std::string value_text(const Tensor& tensor, const uint8_t* bytes, size_t index) {
  if (tensor.type == Type::Float32) {
    float value = 0;
    std::memcpy(&value, bytes + 4 * index, 4);
    char text[48];
    std::snprintf(text, sizeof(text), "%.9g (%a)", static_cast<double>(value), static_cast<double>(value));
    return text;
  }
  int64_t value = 0;
  if (tensor.type == Type::Int32) {
    int32_t narrow = 0;
    std::memcpy(&narrow, bytes + 4 * index, 4);
    value = narrow;
  } else {
    std::memcpy(&value, bytes + type_size(tensor.type) * index, type_size(tensor.type));
  }
  return std::to_string(value);
}

Status compare(const Tensor& given, const circle::WeightsEntry& recorded, const std::string& where) {
  if (recorded.dtype != stored_name(given.type) || recorded.shape != given.shape) {
    return differs("is " + std::string(stored_name(given.type)) + " " + shape_text(given.shape) +
                       ", recorded is " + recorded.dtype + " " + shape_text(recorded.shape),
                   where);
  }
  const size_t size = type_size(given.type);
  for (size_t i = 0; i < static_cast<size_t>(given.count()); ++i) {
    if (std::memcmp(given.bytes.data() + i * size, recorded.bytes.data + i * size, size) == 0) continue;
    return differs("has " + value_text(given, given.bytes.data(), i) + " at " + std::to_string(i) + " of " +
                       shape_text(given.shape) + ", recorded is " + value_text(given, recorded.bytes.data, i),
                   where);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Replay>> Replay::open(const std::string& path) {
  std::unique_ptr<Replay> made(new Replay);
  PYQUANT_TRY_ASSIGN(made->file_, circle::read_safetensors(path));
  for (const auto& [name, entry] : made->file_.tensors) {
    const size_t first = name.find('|'), second = name.find('|', first + 1),
                 third = name.find('|', second + 1);
    size_t number = 0;
    for (size_t i = 0; i < first && first != std::string::npos && number < kMostCalls; ++i) {
      number = number * 10 + static_cast<size_t>(name[i] - '0');
    }
    if (third == std::string::npos || number >= kMostCalls) {
      return differs("'" + name + "' is no tensor of a recording (NUMBER|GRAPH|in or out|NAME)", path);
    }
    if (made->calls_.size() <= number) made->calls_.resize(number + 1);
    Call& call = made->calls_[number];
    call.graph = name.substr(first + 1, second - first - 1);
    auto& side = name.substr(second + 1, third - second - 1) == "in" ? call.in : call.out;
    side[name.substr(third + 1)] = &entry;
  }
  return made;
}

Result<Outputs> Replay::run(const std::string& graph, const Inputs& inputs) {
  const std::string number = "call " + std::to_string(next_);
  if (next_ == calls_.size())
    return differs("runs graph '" + graph + "' behind the last recorded call", number);
  const Call& call = calls_[next_++];
  if (call.graph != graph)
    return differs("runs graph '" + graph + "', recorded is '" + call.graph + "'", number);
  for (const auto& [name, tensor] : inputs) {
    const auto recorded = call.in.find(name);
    const std::string where = number + ", graph '" + graph + "', input '" + name + "'";
    if (recorded == call.in.end()) return differs("was not recorded", where);
    PYQUANT_TRY(compare(*tensor, *recorded->second, where));
  }
  if (inputs.size() != call.in.size()) {
    return differs(
        "has " + std::to_string(inputs.size()) + " inputs, recorded are " + std::to_string(call.in.size()),
        number + ", graph '" + graph + "'");
  }
  Outputs made;
  for (const auto& [name, entry] : call.out) {
    Tensor tensor;
    for (const Stored& stored : kStored) {
      if (entry->dtype == stored.name) tensor = Tensor::zeros(stored.type, entry->shape);
    }
    if (tensor.bytes.size() != entry->bytes.size)
      return differs("output '" + name + "' is " + entry->dtype, number);
    if (entry->bytes.size) std::memcpy(tensor.bytes.data(), entry->bytes.data, entry->bytes.size);
    made[name] = std::move(tensor);
  }
  return made;
}

Status Replay::finish() const {
  if (next_ == calls_.size()) return {};
  return differs(
      "made " + std::to_string(next_) + " calls, " + std::to_string(calls_.size()) + " are recorded",
      "the end");
}

}  // namespace pyquant::host
