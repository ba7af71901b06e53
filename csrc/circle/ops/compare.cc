// SPDX-License-Identifier: Apache-2.0
// Comparisons and logic: bool results.
#include "circle/ops/row.h"

namespace pyquant::circle {

std::vector<OpRow> compare_rows() {
  std::vector<OpRow> rows;
  for (const char* name : {"EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL",
                           "LOGICAL_AND", "LOGICAL_OR"}) {
    rows.push_back({name, infer_broadcast});
  }
  rows.push_back({"LOGICAL_NOT", infer_same});
  return rows;
}

}  // namespace pyquant::circle
