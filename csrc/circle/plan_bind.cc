// SPDX-License-Identifier: Apache-2.0
// Gives the constants of a plan their bytes, by index or by name; every mismatch is an error before anything
// is written.
#include "circle/plan.h"

namespace pyquant::circle {
namespace {

std::string place_of(const Plan& plan, size_t constant) {
  const ConstantRef& ref = plan.constants[constant];
  return tensor_place(plan.model.graphs[ref.graph], static_cast<int64_t>(ref.first_tensor));
}

// Element types for the bytes of a plan's tensor. Packed types travel as U8; I8 is accepted for them
// too.
bool dtype_fits(const WeightsEntry& entry, DType dtype) {
  const char* wanted = safetensors_dtype(dtype);
  if (!wanted) return false;
  if (entry.dtype == wanted) return true;
  const DTypeInfo* type = info(dtype);
  return type->block_elements > 1 && entry.dtype == "I8";
}

}  // namespace

Status bind_constants(Plan& plan, const std::vector<Bytes>& constants) {
  std::vector<bool> used(constants.size(), false);
  for (size_t k = 0; k < plan.constants.size(); ++k) {
    const ConstantRef& ref = plan.constants[k];
    if (ref.by_name) {
      return Fault{Code::E_CONSTANT_INDEX,
                   "constant '" + ref.name + "' is a name, but the constants here are a list; use an index",
                   place_of(plan, k)};
    }
    if (ref.index < 0 || static_cast<uint64_t>(ref.index) >= constants.size()) {
      return Fault{Code::E_CONSTANT_INDEX,
                   "constant " + std::to_string(ref.index) + " does not exist; " +
                       std::to_string(constants.size()) + " constants were given",
                   place_of(plan, k)};
    }
    used[static_cast<size_t>(ref.index)] = true;
    plan.model.buffers[k + 1].bytes = constants[static_cast<size_t>(ref.index)];
  }
  for (size_t i = 0; i < used.size(); ++i) {
    if (!used[i]) {
      return Fault{Code::E_CONSTANT_UNUSED, "no tensor of the plan names it; leave it out",
                   "constants[" + std::to_string(i) + "]"};
    }
  }
  return {};
}

Status bind_constants(Plan& plan, const Safetensors& weights, std::vector<std::string>* unused) {
  std::map<std::string, bool> used;
  for (size_t k = 0; k < plan.constants.size(); ++k) {
    const ConstantRef& ref = plan.constants[k];
    const std::string name = ref.by_name ? ref.name : std::to_string(ref.index);
    const auto found = weights.tensors.find(name);
    if (found == weights.tensors.end()) {
      return Fault{Code::E_WEIGHTS_MISSING,
                   "the plan names constant '" + name + "', which " + weights.path + " (" +
                       std::to_string(weights.tensors.size()) + " tensors) does not have",
                   place_of(plan, k)};
    }
    const DType dtype = plan.model.graphs[ref.graph].tensors[ref.first_tensor].dtype;
    if (!dtype_fits(found->second, dtype)) {
      const char* wanted = safetensors_dtype(dtype);
      return Fault{Code::E_CONSTANT_DTYPE,
                   "constant '" + name + "' is " + found->second.dtype + " in " + weights.path +
                       ", expected " + (wanted ? wanted : "none") + " for " + name_of(dtype),
                   place_of(plan, k)};
    }
    used[name] = true;
    plan.model.buffers[k + 1].bytes = found->second.bytes;
  }
  plan.model.owners.push_back(weights.mapping);
  if (weights.mapping) plan.model.files.push_back(weights.mapping);
  if (unused) {
    for (const auto& [name, entry] : weights.tensors) {
      if (!used.count(name)) unused->push_back(name);
    }
  }
  return {};
}

}  // namespace pyquant::circle
