// SPDX-License-Identifier: Apache-2.0
// Calls of graphs: every input is compared with the manifest before a runtime sees it, and outputs are there
// after. Tables beside the graphs are read here, and split ones put together.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "host/manifest.h"
#include "host/row_table.h"
#include "host/runtime.h"

namespace pyquant::host {

class Calls {
 public:
  Calls(const Manifest& manifest, Runtime& runtime) : manifest_(manifest), runtime_(runtime) {}
  /// Opens the tables beside the graphs, in the folder of the bundle.
  Status open_tables(const std::string& folder);

  /// Fails with E_HOST_INPUT for an input that is missing, of another form or out of range, with E_MANIFEST
  /// for an output of `outputs` that the graph does not make.
  Result<Outputs> run(const Graph& graph, const Inputs& inputs,
                      const std::vector<std::string>& outputs) const;

  /// The rows of a kind of table for ids int32 (batch, places): of one graph, of parts of one, or of a file.
  Result<Tensor> lookup(const std::string& kind, const std::string& input, const std::string& output,
                        const Tensor& ids) const;

 private:
  Result<Tensor> by_rows(const std::vector<const Graph*>& parts, const std::string& input,
                         const std::string& output, const Tensor& ids) const;

  const Manifest& manifest_;
  Runtime& runtime_;
  std::map<std::string, RowTable> tables_;
};

}  // namespace pyquant::host
