// SPDX-License-Identifier: Apache-2.0
// Functions of one value: NEG to LEAKY_RELU.
#include "circle/ops/row.h"

namespace pyquant::circle {

std::vector<OpRow> unary_rows() {
  FixedGrid (*const tanh)(bool) = [](bool narrow) {
    return narrow ? FixedGrid{2.0f / 256.0f, 128} : FixedGrid{1.0f / 32768.0f, 0};
  };
  FixedGrid (*const logistic)(bool) = [](bool narrow) {
    return FixedGrid{narrow ? 1.0f / 256.0f : 1.0f / 32768.0f, 0};
  };
  std::vector<OpRow> rows;
  for (const char* name : {"NEG", "ABS", "SQRT", "RSQRT", "EXP", "LOG", "SQUARE", "FLOOR", "CEIL", "ROUND",
                           "SIN", "COS", "TANH", "LOGISTIC", "RELU", "RELU6", "GELU", "ELU", "LEAKY_RELU"}) {
    OpRow& row = rows.emplace_back(OpRow{name, infer_same});
    if (row.name == "TANH") row.fixed = tanh;
    if (row.name == "LOGISTIC") row.fixed = logistic;
  }
  return rows;
}

}  // namespace pyquant::circle
