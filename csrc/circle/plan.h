// SPDX-License-Identifier: Apache-2.0
// A plan: the JSON text with everything of a model but the bytes of its constants, which are bound to
// it by index or by name. Whether the model it describes is valid is left to check/.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "circle/ir.h"
#include "circle/safetensors.h"
#include "pyquant/status.h"

namespace pyquant::circle {

/// How a plan names a constant: an index into a list, or a name in a weights file.
struct ConstantRef {
  bool by_name = false;
  std::string name;
  int64_t index = 0;
  size_t graph = 0;  // of the first tensor that names it
  size_t first_tensor = 0;
};

/// constants[k] fills model.buffers[k + 1]; the buffers of metadata come after those.
struct Plan {
  Model model;
  std::vector<ConstantRef> constants;
};

/// Parses plan text; `what` names it in messages.
Result<Plan> parse_plan(std::string_view text, const std::string& what);

/// Gives constants their bytes (or, with data null, only their sizes). Every entry must be used.
Status bind_constants(Plan& plan, const std::vector<Bytes>& constants);
/// Gives constants their bytes by name; names returned in `unused` are in the file but not in the plan.
Status bind_constants(Plan& plan, const Safetensors& weights, std::vector<std::string>* unused = nullptr);

/// The plan of a model that was read; its constants get names, listed in the order of their buffers.
struct DumpedPlan {
  std::string json;
  std::vector<WeightsEntry> weights;
  std::vector<std::shared_ptr<const void>> owners;  // keep the weights' bytes alive
};
Result<DumpedPlan> dump_plan(const Model& model);

}  // namespace pyquant::circle
