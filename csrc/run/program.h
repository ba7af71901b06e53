// SPDX-License-Identifier: Apache-2.0
// A file that can be run: read, mapped, and found without faults. It computes nothing; Runner does.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "circle/ir.h"
#include "circle/ops/step.h"
#include "pyquant/status.h"

namespace pyquant::run {

/// An input or output of a graph.
struct Port {
  std::string name;
  const circle::Tensor* tensor = nullptr;
  size_t index = 0;            // of the tensor
  std::vector<int32_t> shape;  // -1 where it is open
};

class Program {
 public:
  /// Maps a file: its first graph, or that of a signature. Fails with its first fault for target `circle`;
  /// nothing of the constants is read or copied.
  static Result<std::shared_ptr<const Program>> load(const std::string& path,
                                                     const std::string& signature = "");
  /// The same on bytes that `owner` keeps alive (or the caller).
  static Result<std::shared_ptr<const Program>> from_bytes(circle::Bytes bytes, const std::string& name,
                                                           std::shared_ptr<const void> owner = nullptr,
                                                           const std::string& signature = "");
  /// Of a model that was read or bound already; `name` stands in messages.
  static Result<std::shared_ptr<const Program>> from_model(circle::Model model, const std::string& name,
                                                           const std::string& signature = "");
  /// Another graph of the same file.
  Result<std::shared_ptr<const Program>> with_signature(const std::string& signature) const;
  /// Keys of the file's signatures.
  std::vector<std::string> signatures() const;

  /// One operator alone: its inputs that are no constants are those of the graph, in order (each once).
  Result<std::shared_ptr<const Program>> operation(size_t op) const;

  const circle::Model& model() const { return *model_; }
  const circle::Graph& graph() const { return model_->graphs[graph_]; }
  const std::string& name() const { return name_; }
  /// In the order of the graph; named by the signature where the file has one, else by their tensors, with
  /// "#NUMBER" of the tensor behind a name that was there before.
  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }

 private:
  /// `signature` names the graph's inputs and outputs; null: their tensors do.
  Program(std::shared_ptr<const circle::Model> model, std::string name, size_t graph,
          const circle::Signature* signature);
  static Result<std::shared_ptr<const Program>> of(std::shared_ptr<const circle::Model> model,
                                                   const std::string& name, const std::string& signature);
  std::vector<Port> ports(const std::vector<int32_t>& list,
                          const std::vector<circle::NamedIndex>* names) const;

  std::shared_ptr<const circle::Model> model_;
  std::string name_;
  size_t graph_ = 0;
  std::vector<Port> inputs_, outputs_;
};

}  // namespace pyquant::run
