// SPDX-License-Identifier: Apache-2.0
// What is done with hostile bytes: everything that a user could do with a file, a plan or a weights file.
// Shared by the libFuzzer harness and the deterministic mutation test; any crash, hang or sanitizer report is
// a bug.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "circle/json.h"
#include "circle/plan.h"
#include "circle/safetensors.h"
#include "pyquant/circle.h"

namespace fuzz {

using namespace pyquant::circle;  // NOLINT: a test header

/// A broken guarantee: prints which, and aborts.
inline void demand(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what.c_str());
  std::abort();
}

inline void check_model(const Model& model) {
  for (const Target target : {Target::Circle, Target::Luci, Target::Onert}) {
    demand(pyquant::circle::check(model, target).size() <= 1000, "faults are limited");
  }
  demand(!inspect_text(model, "x").empty() && !inspect_json(model, "x").empty(), "inspect prints something");
}

/// A .circle file. The bytes are copied to a block of exactly their size, so that a sanitizer sees every step
/// outside.
inline bool circle_file(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> exact(data, data + size);
  const auto model = read_bytes({exact.data(), exact.size()}, "fuzz");
  if (!model.ok()) return false;
  check_model(model.value());
  const auto lines = diff(model.value(), model.value());
  demand(lines.empty(), "a file differs from itself: " + (lines.empty() ? "" : lines[0]));
  // A model that a plan can express is read back equal.
  const auto plan = dump_plan(model.value());
  if (!plan.ok()) return true;
  const auto again = parse_plan(plan.value().json, "fuzz");
  demand(again.ok(), "a dumped plan is refused: " + (again.ok() ? "" : again.fault().text()));
  demand(again.value().model.graphs.size() == model.value().graphs.size(), "a dumped plan lost graphs");
  return true;
}

/// Plan text, bound to constants of the sizes that it needs.
inline bool plan_text(const uint8_t* data, size_t size) {
  auto plan = parse_plan({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!plan.ok()) return false;
  Model& model = plan.value().model;
  for (const Graph& graph : model.graphs) {
    for (const Tensor& t : graph.tensors) {
      const auto bytes = byte_size(t.dtype, t.shape);
      if (t.buffer > 0 && bytes) model.buffers[t.buffer].bytes = {nullptr, static_cast<size_t>(*bytes)};
    }
  }
  check_model(model);
  return true;
}

/// A weights file.
inline bool weights_file(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> exact(data, data + size);
  const auto weights = parse_safetensors({exact.data(), exact.size()}, "fuzz");
  if (!weights.ok()) return false;
  unsigned sum = 0;
  for (const auto& [name, entry] : weights.value().tensors) {
    for (size_t i = 0; i < entry.bytes.size; ++i) sum += entry.bytes.data[i];
  }
  return sum + 1 != 0;
}

}  // namespace fuzz
