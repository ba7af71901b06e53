// SPDX-License-Identifier: Apache-2.0
// Files of one graph each to one file of several, which share the constants that have equal bytes.
#include <cstring>
#include <map>
#include <set>

#include "pyquant/circle.h"

namespace pyquant::circle {
namespace {

// FNV-1a over 8 bytes at a time: only to find candidates, which are then compared.
uint64_t hash_of(Bytes bytes) {
  uint64_t hash = 0xcbf29ce484222325u ^ bytes.size;
  size_t at = 0;
  for (; at + 8 <= bytes.size; at += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data + at, sizeof word);
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 29;
  }
  for (; at < bytes.size; ++at) hash = (hash ^ bytes.data[at]) * 0x100000001b3u;
  return hash;
}

class Joiner {
 public:
  Result<Model> join(const std::vector<NamedModel>& parts) {
    std::set<std::string> keys;
    for (const NamedModel& part : parts) {
      const Model& from = *part.model;
      if (from.graphs.size() != 1 || !keys.insert(part.key).second || part.key.empty()) {
        return Fault{Code::E_SIGNATURE,
                     from.graphs.size() != 1
                         ? "has " + std::to_string(from.graphs.size()) + " graphs, expected one"
                         : "needs a key of its own",
                     "'" + part.key + "'"};
      }
      add(from, part.key);
    }
    // Metadata comes behind the constants, as in files of one graph; the first of a name stays.
    std::set<std::string> names;
    for (const NamedModel& part : parts) {
      for (const Metadata& entry : part.model->metadata) {
        if (!names.insert(entry.name).second || entry.buffer >= part.model->buffers.size()) continue;
        out_.metadata.push_back({entry.name, static_cast<uint32_t>(out_.buffers.size())});
        out_.buffers.push_back(plain(part.model->buffers[entry.buffer]));
      }
    }
    if (!parts.empty()) out_.description = parts[0].model->description;
    return std::move(out_);
  }

 private:
  static Buffer plain(const Buffer& from) {
    Buffer buffer;
    buffer.bytes = from.bytes;
    return buffer;
  }

  void add(const Model& from, const std::string& key) {
    const auto number = static_cast<uint32_t>(out_.graphs.size());
    Graph& graph = out_.graphs.emplace_back(from.graphs[0]);
    std::map<uint32_t, uint32_t> buffers;
    for (Tensor& t : graph.tensors) {
      if (!from.is_constant(t)) {
        t.buffer = 0;
        continue;
      }
      const auto [entry, is_new] = buffers.try_emplace(t.buffer, 0);
      if (is_new) entry->second = shared(from.buffers[t.buffer]);
      t.buffer = entry->second;
    }
    Signature signature{key, number, {}, {}};
    for (const bool inputs : {true, false}) {
      auto& named = inputs ? signature.inputs : signature.outputs;
      if (!from.signatures.empty()) {
        named = inputs ? from.signatures[0].inputs : from.signatures[0].outputs;
        continue;
      }
      for (int32_t t : inputs ? graph.inputs : graph.outputs) {
        named.emplace_back(graph.tensors[static_cast<size_t>(t)].name, static_cast<uint32_t>(t));
      }
    }
    out_.signatures.push_back(std::move(signature));
    out_.owners.insert(out_.owners.end(), from.owners.begin(), from.owners.end());
    out_.files.insert(out_.files.end(), from.files.begin(), from.files.end());
  }

  // The buffer of the new file with these bytes.
  uint32_t shared(const Buffer& from) {
    auto& candidates = by_hash_[hash_of(from.bytes)];
    for (const uint32_t b : candidates) {
      const Bytes there = out_.buffers[b].bytes;
      if (there.size == from.bytes.size &&
          (there.size == 0 || std::memcmp(there.data, from.bytes.data, there.size) == 0)) {
        return b;
      }
    }
    const auto b = static_cast<uint32_t>(out_.buffers.size());
    out_.buffers.push_back(plain(from));
    candidates.push_back(b);
    return b;
  }

  Model out_;
  std::map<uint64_t, std::vector<uint32_t>> by_hash_;
};

}  // namespace

Result<Model> join(const std::vector<NamedModel>& parts) { return Joiner().join(parts); }

}  // namespace pyquant::circle
