// SPDX-License-Identifier: Apache-2.0
// A table of embeddings in a file beside the graphs, of which single rows are read. The file is mapped; its
// form is described in pyquant/decoder/row_table.py.
#pragma once

#include <memory>

#include "circle/safetensors.h"
#include "host/manifest.h"
#include "pyquant/status.h"

namespace pyquant::host {

class RowTable {
 public:
  /// Fails with E_BUNDLE_FILE for a file that is not the table of `entry`.
  static Result<RowTable> open(const Table& entry, const std::string& path);
  /// ids int32 (...) -> (..., width) float32: (integer - zero_point) * scale, times the factor, in float32.
  /// Fails with E_HOST_INPUT for an id behind the last row.
  Result<Tensor> rows(const Tensor& ids) const;

 private:
  void row(int64_t id, float* out) const;

  Table entry_;
  circle::Safetensors file_;
  const circle::WeightsEntry* rows_ = nullptr;
  const circle::WeightsEntry* scale_ = nullptr;  // nullptr: floats
  const circle::WeightsEntry* zero_point_ = nullptr;
};

}  // namespace pyquant::host
