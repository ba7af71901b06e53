// SPDX-License-Identifier: Apache-2.0
#include "sample.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "circle/plan.h"

namespace sample {
namespace {

namespace fs = std::filesystem;

const uint8_t kWeights[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255};
const int32_t kBias[3] = {100, -200, 300};
const int32_t kPermutation[2] = {1, 0};

template <typename V>
V must(pyquant::Result<V> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "sample: %s\n", result.fault().text().c_str());
    std::abort();
  }
  return std::move(result).value();
}

std::string ints(const std::vector<int>& values) {
  std::string out = "[";
  for (size_t i = 0; i < values.size(); ++i) out += (i ? "," : "") + std::to_string(values[i]);
  return out + "]";
}

}  // namespace

// Scales are powers of two, so that input scale x weight scale is exact for luci's bias rule.
std::string plan_text() {
  return R"({"format": "pyquant-plan", "version": 1, "name": "sample", "description": "a test",
 "metadata": {"pyquant": "test"},
 "tensors": [
  {"name": "x", "dtype": "uint8", "shape": [2, 4], "quant": {"scale": [0.0625], "zero_point": [3], "axis": 0}},
  {"name": "w", "dtype": "uint8", "shape": [3, 4], "constant": 0,
   "quant": {"scale": [0.5, 0.25, 0.125], "zero_point": [0, 128, 255], "axis": 0}},
  {"name": "b", "dtype": "int32", "shape": [3], "constant": 1,
   "quant": {"scale": [0.03125, 0.015625, 0.0078125], "zero_point": [0, 0, 0], "axis": 0}},
  {"name": "y", "dtype": "uint8", "shape": [2, 3], "quant": {"scale": [0.5], "zero_point": [128]}},
  {"name": "s", "dtype": "uint8", "shape": [2, 3], "quant": {"scale": [0.003921569], "zero_point": [0]}},
  {"name": "perm", "dtype": "int32", "shape": [2], "constant": 2},
  {"name": "t", "dtype": "uint8", "shape": [3, 2], "quant": {"scale": [0.003921569], "zero_point": [0]}},
  {"name": "z", "dtype": "uint8", "shape": [3, 2], "quant": {"scale": [0.0078125], "zero_point": [0]}}],
 "operators": [
  {"op": "FULLY_CONNECTED", "inputs": [0, 1, 2], "outputs": [3], "options": {"keep_num_dims": true}},
  {"op": "SOFTMAX", "inputs": [3], "outputs": [4], "options": {"beta": 1.0}},
  {"op": "TRANSPOSE", "inputs": [4, 5], "outputs": [6]},
  {"op": "ADD", "inputs": [6, 6], "outputs": [7], "options": {"fused_activation_function": "NONE"}}],
 "inputs": [0], "outputs": [7],
 "signature": {"key": "serving_default", "inputs": {"x": 0}, "outputs": {"z": 7}}})";
}

std::vector<Bytes> constants() {
  return {{kWeights, sizeof(kWeights)},
          {reinterpret_cast<const uint8_t*>(kBias), sizeof(kBias)},
          {reinterpret_cast<const uint8_t*>(kPermutation), sizeof(kPermutation)}};
}

Plan plan() { return must(pyquant::circle::parse_plan(plan_text(), "sample")); }

Model model() {
  Plan p = plan();
  if (!pyquant::circle::bind_constants(p, constants()).ok()) std::abort();
  return std::move(p.model);
}

std::vector<uint8_t> file() {
  const TempFolder folder;
  const std::string path = folder / "sample.circle";
  must(pyquant::circle::write_file(model(), path));
  return read_all(path);
}

Model one_op(const std::string& op, const std::vector<T>& inputs, const std::vector<T>& outputs,
             const std::string& options) {
  std::string tensors, operands[2], graph[2];
  std::vector<size_t> sizes;
  int count = 0, constant = 0;
  auto owner = std::make_shared<std::vector<std::vector<uint8_t>>>();
  const auto add = [&](const T& t, int side) {
    std::string& list = operands[side];
    list += list.empty() ? "" : ",";
    if (!t.dtype) {
      list += "-1";
      return;
    }
    list += std::to_string(count);
    if (!t.constant) graph[side] += (graph[side].empty() ? "" : ",") + std::to_string(count);
    tensors += std::string(tensors.empty() ? "" : ",") + "{\"name\": \"t" + std::to_string(count++) +
               "\", \"dtype\": \"" + t.dtype + "\", \"shape\": " + ints(t.shape);
    if (!t.scale.empty()) {
      std::string scales, zeros;
      for (float scale : t.scale) {
        scales += (scales.empty() ? "" : ",") + std::to_string(scale);
        zeros += zeros.empty() ? "0" : ",0";
      }
      tensors += ", \"quant\": {\"scale\": [" + scales + "], \"zero_point\": [" + zeros +
                 "], \"axis\": " + std::to_string(t.axis) + "}";
    }
    if (t.constant) {
      tensors += ", \"constant\": " + std::to_string(constant++);
      const auto* type = pyquant::circle::dtype_by_name(t.dtype);
      const auto bytes = pyquant::circle::byte_size(type->dtype, {t.shape.begin(), t.shape.end()});
      owner->emplace_back(static_cast<size_t>(*bytes));
    }
    tensors += "}";
  };
  for (const T& t : inputs) add(t, 0);
  for (const T& t : outputs) add(t, 1);
  const std::string text = "{\"format\": \"pyquant-plan\", \"version\": 1, \"tensors\": [" + tensors +
                           "], \"operators\": [{\"op\": \"" + op + "\", \"inputs\": [" + operands[0] +
                           "], \"outputs\": [" + operands[1] + "], \"options\": " + options +
                           "}], \"inputs\": [" + graph[0] + "], \"outputs\": [" + graph[1] + "]}";
  Plan p = must(pyquant::circle::parse_plan(text, op));
  std::vector<Bytes> list;
  for (const auto& bytes : *owner) list.push_back(bytes_of(bytes));
  if (!pyquant::circle::bind_constants(p, list).ok()) std::abort();
  p.model.owners.push_back(owner);
  return std::move(p.model);
}

bool has(const std::vector<Fault>& faults, Code code) {
  for (const Fault& fault : faults) {
    if (fault.code == code) return true;
  }
  return false;
}

std::string text(const std::vector<Fault>& faults) {
  std::string out = faults.empty() ? "no faults" : "";
  for (const Fault& fault : faults) out += fault.text() + "\n";
  return out;
}

TempFolder::TempFolder() {
  std::string name = (fs::temp_directory_path() / "pyquant-test-XXXXXX").string();
  if (!::mkdtemp(name.data())) std::abort();
  path_ = name;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::vector<std::string> TempFolder::names() const {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(path_)) out.push_back(entry.path().filename().string());
  return out;
}

std::vector<uint8_t> read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_all(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

Bytes bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
Bytes bytes_of(const std::vector<uint8_t>& bytes) { return {bytes.data(), bytes.size()}; }

}  // namespace sample
