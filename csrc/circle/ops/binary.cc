// SPDX-License-Identifier: Apache-2.0
// Two operands that broadcast against each other: ADD to FLOOR_MOD.
#include "circle/ops/row.h"

namespace pyquant::circle {

std::vector<OpRow> binary_rows() {
  std::vector<OpRow> rows;
  for (const char* name : {"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE",
                           "FLOOR_DIV", "FLOOR_MOD"}) {
    rows.push_back({name, infer_broadcast});
  }
  return rows;
}

}  // namespace pyquant::circle
