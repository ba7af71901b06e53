// SPDX-License-Identifier: Apache-2.0
#include "host/calls.h"

#include <algorithm>

#include "host/fault.h"

namespace pyquant::host {
namespace {

Status check(const Graph& graph, const TensorSpec& spec, const Tensor& given) {
  const std::string where = "graph '" + graph.name + "': input '" + spec.name + "'";
  bool fits = given.shape.size() == spec.shape.size();
  fits = fits && (given.type == spec.type || (is_real(given.type) && is_real(spec.type)));
  for (size_t i = 0; fits && i < spec.shape.size(); ++i) {
    fits = spec.shape[i] < 0 || spec.shape[i] == given.shape[i];
  }
  if (!fits) {
    return fault_of(Code::E_HOST_INPUT, where + " would be " + type_name(given.type) + " " +
                                            shape_text(given.shape) + ", expected " + type_name(spec.type) +
                                            " " + shape_text(spec.shape));
  }
  for (int64_t i = 0; spec.range && spec.type == Type::Int32 && i < given.count(); ++i) {
    const int32_t value = given.ints()[i];
    if (value >= spec.range->first && value <= spec.range->second) continue;
    const std::string what = spec.name == "input_ids" ? "token id " : "value ";
    return fault_of(Code::E_HOST_INPUT, where + " would have the " + what + std::to_string(value) +
                                            ", out of the range " + std::to_string(spec.range->first) +
                                            " to " + std::to_string(spec.range->second));
  }
  return {};
}

}  // namespace

Status Calls::open_tables(const std::string& folder) {
  for (const Table& table : manifest_.tables) {
    PYQUANT_TRY_ASSIGN(RowTable opened, RowTable::open(table, folder + "/" + table.file));
    tables_.emplace(table.name, std::move(opened));
  }
  return {};
}

Result<Outputs> Calls::run(const Graph& graph, const Inputs& inputs,
                           const std::vector<std::string>& outputs) const {
  for (const TensorSpec& spec : graph.inputs) {
    const auto given = inputs.find(spec.name);
    if (given == inputs.end()) {
      return fault_of(Code::E_MANIFEST, "graph '" + graph.name + "' takes '" + spec.name +
                                            "', and the manifest does not say what a host puts there");
    }
    PYQUANT_TRY(check(graph, spec, *given->second));
  }
  for (const auto& [name, tensor] : inputs) {
    if (graph.input(name)) continue;
    return fault_of(Code::E_MANIFEST,
                    "graph '" + graph.name + "' has no input '" + name + "', which a host has for it");
  }
  PYQUANT_TRY_ASSIGN(Outputs made, runtime_.run(graph.name, inputs));
  for (const std::string& name : outputs) {
    if (made.count(name)) continue;
    return fault_of(Code::E_MANIFEST, "graph '" + graph.name + "' makes no output '" + name + "'");
  }
  return made;
}

Result<Tensor> Calls::lookup(const std::string& kind, const std::string& input, const std::string& output,
                             const Tensor& ids) const {
  if (const auto table = tables_.find(kind); table != tables_.end()) return table->second.rows(ids);
  const Graph* graph = manifest_.find(kind, ids.shape[1]);
  const auto parts = graph ? std::vector<const Graph*>{graph} : manifest_.parts(kind, ids.shape[1]);
  if (parts.empty()) {
    return fault_of(Code::E_MANIFEST, "the bundle has no graph of kind '" + kind + "' for " +
                                          std::to_string(ids.shape[1]) + " places");
  }
  if (parts[0]->rows) return by_rows(parts, input, output, ids);
  std::vector<Tensor> found;
  for (const Graph* part : parts) {
    PYQUANT_TRY_ASSIGN(Outputs made, run(*part, {{input, &ids}}, {output}));
    found.push_back(std::move(made[output]));
  }
  if (found.size() == 1) return std::move(found[0]);
  std::vector<const Tensor*> pointers;
  for (const Tensor& each : found) pointers.push_back(&each);
  return joined(pointers, pointers[0]->shape.size() - 1);
}

Result<Tensor> Calls::by_rows(const std::vector<const Graph*>& parts, const std::string& input,
                              const std::string& output, const Tensor& ids) const {
  std::optional<Tensor> found;
  int64_t seen = 0;
  for (const Graph* part : parts) {
    const auto [start, stop] = *part->rows;
    Tensor local = ids;
    std::vector<int64_t> inside;
    for (int64_t i = 0; i < ids.count(); ++i) {
      const int64_t id = ids.ints()[i];
      if (id >= start && id < stop) inside.push_back(i);
      local.ints()[i] = static_cast<int32_t>(std::clamp<int64_t>(id - start, 0, stop - start - 1));
    }
    seen += static_cast<int64_t>(inside.size());
    if (inside.empty()) continue;
    PYQUANT_TRY_ASSIGN(Outputs made, run(*part, {{input, &local}}, {output}));
    Tensor& rows = made[output];
    if (!found) {
      found = std::move(rows);
      continue;
    }
    if (!rows.is_like(*found)) {
      rows = rows.as_floats();
      found = found->as_floats();
    }
    const size_t line = rows.bytes.size() / static_cast<size_t>(ids.count());
    for (int64_t i : inside) {
      std::memcpy(found->bytes.data() + static_cast<size_t>(i) * line,
                  rows.bytes.data() + static_cast<size_t>(i) * line, line);
    }
  }
  if (found && seen == ids.count()) return std::move(*found);
  return fault_of(Code::E_HOST_INPUT, "a token is outside the " + std::to_string(parts.back()->rows->second) +
                                          " rows of the split table '" + parts[0]->kind + "'");
}

}  // namespace pyquant::host
