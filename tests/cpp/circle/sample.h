// SPDX-License-Identifier: Apache-2.0
// Small models for the tests: one that is valid for circle and luci, and one-operator models of any kind.
#pragma once

#include <string>
#include <vector>

#include "pyquant/circle.h"

namespace sample {

using pyquant::Code;
using pyquant::Fault;
using pyquant::circle::Bytes;
using pyquant::circle::DType;
using pyquant::circle::Model;
using pyquant::circle::Plan;
using pyquant::circle::Target;

/// FULLY_CONNECTED, SOFTMAX, TRANSPOSE, ADD on uint8: valid for circle and luci, and for write.
std::string plan_text();
/// Its weights, bias and permutation, by index.
std::vector<Bytes> constants();
Plan plan();
Model model();
/// The file that it is written to, as bytes.
std::vector<uint8_t> file();

/// One tensor of a one-operator model.
struct T {
  const char* dtype;
  std::vector<int> shape;
  std::vector<float> scale = {};  // with a zero_point of 0 each
  bool constant = false;
  int axis = 0;
};
/// A model of one operator: its inputs, its outputs, its options as JSON. A T without dtype is a -1 operand.
Model one_op(const std::string& op, const std::vector<T>& inputs, const std::vector<T>& outputs,
             const std::string& options = "{}");

/// pyquant::circle::check; the test framework has the shorter name.
inline std::vector<Fault> faults(const Model& model, Target target) {
  return pyquant::circle::check(model, target);
}
bool has(const std::vector<Fault>& faults, Code code);
std::string text(const std::vector<Fault>& faults);

/// A folder that goes away with this.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  std::vector<std::string> names() const;

 private:
  std::string path_;
};

std::vector<uint8_t> read_all(const std::string& path);
void write_all(const std::string& path, const std::vector<uint8_t>& bytes);
Bytes bytes_of(const std::string& text);
Bytes bytes_of(const std::vector<uint8_t>& bytes);

}  // namespace sample
