// SPDX-License-Identifier: Apache-2.0
// pyquant-circle run: computes a file's graph on inputs from a .safetensors file.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>

#include "circle/file.h"
#include "circle/safetensors.h"
#include "cli/cli.h"
#include "run/numbers.h"
#include "run/runner.h"

namespace pyquant::cli {
namespace {

using circle::Bytes;
using circle::Safetensors;
using circle::WeightsEntry;
using run::Port;
using run::Shape;

Fault bad_input(const std::string& where, const Port& port, const std::string& message) {
  return {Code::E_RUN_INPUT, message, where + ", input '" + port.name + "'"};
}

/// The inputs of a graph: spans of the file, or blocks of our own where floats became integers.
struct Inputs {
  std::vector<const void*> data;
  std::vector<std::vector<uint64_t>> blocks;
};

/// A tensor of the file for an input of the graph.
struct Given {
  const WeightsEntry* entry = nullptr;
  bool floats = false;  // for integers that stand for numbers; else of the input's own dtype
  Shape shape;
};

/// `hint` ends the message of an input that is missing.
Status find(const Safetensors& file, const Port& port, const std::string& hint, Given& given) {
  const auto found = file.tensors.find(port.name);
  if (found == file.tensors.end()) {
    std::string names;
    for (const auto& [name, entry] : file.tensors) names += (names.empty() ? "" : ", ") + name;
    return bad_input(file.path, port,
                     "is missing; the file has " + (names.empty() ? "no tensors" : names) + hint);
  }
  const WeightsEntry& entry = found->second;
  const char* own = circle::safetensors_dtype(port.tensor->dtype);
  const bool packed = circle::info(port.tensor->dtype)->block_elements > 1;
  const bool floats = run::has_numbers(*port.tensor) && entry.dtype == "F32";
  if (!own || (entry.dtype != own && !floats)) {
    return bad_input(file.path, port,
                     "is " + entry.dtype + ", expected " + (own ? own : "none") +
                         (run::has_numbers(*port.tensor) ? ", or F32 to be rounded to its grid" : ""));
  }
  given = {&entry, floats, packed ? port.shape : Shape(entry.shape.begin(), entry.shape.end())};
  return {};
}

/// After `runner` is prepared for the shapes: the bytes of input i.
Status load_input(const run::Runner& runner, const std::string& path, size_t i, const Given& given,
                  Inputs& inputs) {
  const Bytes bytes = given.entry->bytes;
  const auto wanted = static_cast<size_t>(runner.input_bytes(i));
  if (!given.floats && bytes.size != wanted) {
    return bad_input(path, runner.inputs()[i],
                     "has " + std::to_string(bytes.size) + " bytes, expected " + std::to_string(wanted));
  }
  // Files put tensors at any byte; kernels read whole elements.
  std::vector<uint64_t>& block = inputs.blocks.emplace_back(bytes.size / 8 + 1);
  std::memcpy(block.data(), bytes.data, bytes.size);
  if (given.floats) {
    std::vector<uint64_t> integers(wanted / 8 + 1);
    run::to_integers(*runner.inputs()[i].tensor, given.shape, reinterpret_cast<const float*>(block.data()),
                     integers.data());
    block = std::move(integers);
  }
  inputs.data.push_back(block.data());
  return {};
}

std::string file_name(const std::string& tensor) {
  std::string name;
  for (const char c : tensor)
    name += std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' ? c : '_';
  return name.substr(0, 100);
}

WeightsEntry entry_of(const circle::Tensor& tensor, const std::string& name, const Shape& shape,
                      Bytes bytes) {
  WeightsEntry entry;
  entry.name = name;
  const char* dtype = circle::safetensors_dtype(tensor.dtype);
  entry.dtype = dtype ? dtype : "U8";
  if (circle::info(tensor.dtype)->block_elements > 1 || !dtype) {
    entry.shape = {static_cast<int64_t>(bytes.size)};
  } else {
    entry.shape.assign(shape.begin(), shape.end());
  }
  entry.bytes = bytes;
  return entry;
}

void print_profile(const run::Runner& runner) {
  struct Sum {
    int64_t calls = 0, nanoseconds = 0, bytes = 0, multiply_adds = 0;
  };
  std::map<std::string, Sum> sums;
  int64_t total = 0;
  const auto& operators = runner.program().graph().operators;
  std::printf("%8s %-24s %10s %12s %12s  %s\n", "operator", "name", "us", "bytes", "mult-adds", "output");
  for (const run::StepProfile& step : runner.profile()) {
    const auto& op = operators[step.op];
    Sum& sum = sums[op_name(op)];
    const int64_t calls = std::max<int64_t>(step.calls, 1);
    sum.calls += 1;
    sum.nanoseconds += step.nanoseconds / calls;
    sum.bytes += step.bytes;
    sum.multiply_adds += step.multiply_adds;
    total += step.nanoseconds / calls;
    std::printf("%8zu %-24s %10.1f %12" PRId64 " %12" PRId64 "  %s\n", step.op, op_name(op).c_str(),
                static_cast<double>(step.nanoseconds) / static_cast<double>(calls) / 1e3, step.bytes,
                step.multiply_adds,
                runner.program().graph().tensors[static_cast<size_t>(op.outputs[0])].name.c_str());
  }
  std::vector<std::pair<std::string, Sum>> order(sums.begin(), sums.end());
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.second.nanoseconds > b.second.nanoseconds; });
  std::printf("\n%-24s %8s %10s %6s %12s %12s\n", "name", "count", "us", "%", "bytes", "mult-adds");
  for (const auto& [name, sum] : order) {
    std::printf(
        "%-24s %8" PRId64 " %10.1f %6.1f %12" PRId64 " %12" PRId64 "\n", name.c_str(), sum.calls,
        static_cast<double>(sum.nanoseconds) / 1e3,
        100.0 * static_cast<double>(sum.nanoseconds) / static_cast<double>(std::max<int64_t>(total, 1)),
        sum.bytes, sum.multiply_adds);
  }
  std::printf("%-24s %8s %10.1f\n", "all", "", static_cast<double>(total) / 1e3);
}

// Every tensor as FOLDER/NUMBER-NAME.safetensors, in the order of the file.
Status trace(run::Runner& runner, const Inputs& inputs, const std::vector<void*>& outputs,
             const std::string& folder) {
  Status status;
  const auto& tensors = runner.program().graph().tensors;
  const run::Runner::Observer write = [&](int64_t, size_t t, const Shape& shape, Bytes bytes) {
    if (!status.ok()) return;
    const std::string path =
        folder + "/" + std::to_string(t) + "-" + file_name(tensors[t].name) + ".safetensors";
    status = circle::write_safetensors({entry_of(tensors[t], tensors[t].name, shape, bytes)}, path);
  };
  PYQUANT_TRY(runner.run(inputs.data, outputs, &write));
  return status;
}

Status run_file(const Arguments& arguments, int threads, int64_t runs) {
  PYQUANT_TRY_ASSIGN(auto program,
                     run::Program::load(arguments.positionals[0], arguments.get("--signature")));
  run::Runner runner(program, std::make_shared<run::Workspace>(threads));
  Inputs inputs;
  Safetensors file;
  if (arguments.has("--inputs")) {
    PYQUANT_TRY_ASSIGN(file, circle::read_safetensors(arguments.get("--inputs")));
  } else if (!runner.inputs().empty()) {
    return bad_input(arguments.positionals[0], runner.inputs()[0],
                     "has no value; pass --inputs FILE.safetensors");
  }
  std::string hint;
  if (!arguments.has("--signature") && program->signatures().size() > 1) {
    hint = "; this is the first of several graphs, --signature names another:";
    for (const std::string& key : program->signatures()) hint += " " + key;
  }
  std::vector<Given> given(runner.inputs().size());
  std::vector<Shape> shapes;
  for (size_t i = 0; i < given.size(); ++i) {
    PYQUANT_TRY(find(file, runner.inputs()[i], hint, given[i]));
    shapes.push_back(given[i].shape);
  }
  PYQUANT_TRY(runner.prepare(shapes));
  for (size_t i = 0; i < given.size(); ++i) PYQUANT_TRY(load_input(runner, file.path, i, given[i], inputs));
  std::vector<std::vector<uint64_t>> blocks;
  std::vector<void*> outputs;
  for (size_t k = 0; k < runner.outputs().size(); ++k) {
    blocks.emplace_back(static_cast<size_t>(runner.output_bytes(k)) / 8 + 1);
    outputs.push_back(blocks.back().data());
  }
  if (arguments.has("--trace")) {
    PYQUANT_TRY(trace(runner, inputs, outputs, arguments.get("--trace")));
  } else {
    if (arguments.has("--profile")) {
      PYQUANT_TRY(runner.run(inputs.data, outputs));  // tables and pages are made by the first
      runner.start_profile();
    }
    for (int64_t i = 0; i < runs; ++i) PYQUANT_TRY(runner.run(inputs.data, outputs));
    if (arguments.has("--profile")) print_profile(runner);
  }
  if (!arguments.has("-o")) return {};
  std::vector<WeightsEntry> entries;
  std::vector<std::vector<float>> floats;
  for (size_t k = 0; k < runner.outputs().size(); ++k) {
    const Port& port = runner.outputs()[k];
    const Bytes bytes = {static_cast<const uint8_t*>(outputs[k]),
                         static_cast<size_t>(runner.output_bytes(k))};
    entries.push_back(entry_of(*port.tensor, port.name, runner.output_shape(k), bytes));
    if (!arguments.has("--floats") || !run::has_numbers(*port.tensor)) continue;
    auto& values = floats.emplace_back(static_cast<size_t>(*circle::element_count(runner.output_shape(k))));
    run::to_floats(*port.tensor, runner.output_shape(k), outputs[k], values.data());
    entries.back().dtype = "F32";
    entries.back().bytes = {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)};
  }
  return circle::write_safetensors(entries, arguments.get("-o"));
}

/// Whether the folder of --trace is there, or can be made, and is not that of another file of this call: a
/// tensor's file would replace it.
bool is_for_traces(const Arguments& arguments) {
  namespace fs = std::filesystem;
  const std::string folder = arguments.get("--trace");
  std::error_code error;
  if (!fs::is_directory(folder, error) && !fs::create_directory(folder, error)) {
    complain("'" + folder + "' is no folder and cannot be made one (" +
             (error ? error.message() : std::string("it is a file")) + "); name another for --trace");
    return false;
  }
  const fs::path place = circle::resolved(folder);
  for (const char* option : {"--inputs", "-o"}) {
    if (!arguments.has(option)) continue;
    if (fs::path(circle::resolved(arguments.get(option))).parent_path() != place) continue;
    complain(std::string("the file of ") + option + " is in '" + folder +
             "', where a tensor's file could replace it; name another folder for --trace");
    return false;
  }
  return true;
}

int run(const Arguments& arguments) {
  int64_t threads = 0, runs = 1;
  if (!number_of(arguments, "--threads", 0, 1024, threads) ||
      !number_of(arguments, "--runs", 1, 1'000'000, runs)) {
    return kFailed;
  }
  if (!are_apart({arguments.positionals[0], arguments.get("-o"), arguments.get("--inputs")})) return kFailed;
  if (arguments.has("--trace") && !is_for_traces(arguments)) return kFailed;
  const Status status = run_file(arguments, static_cast<int>(threads), runs);
  if (status.ok()) return kFine;
  complain(status.fault().text());
  return kFailed;
}

}  // namespace

const Verb kRun = {
    "run",
    "run x.circle [--inputs in.safetensors] [-o out.safetensors] [--floats] [--signature NAME] [--threads N] "
    "[--trace FOLDER] [--profile] "
    "[--runs N]",
    "computes a file in integers; --floats writes what they stand for, --profile prints time, "
    "bytes and multiply-adds of "
    "each operator, --trace writes every tensor",
    {{"--inputs", "a file"},
     {"-o", "a file"},
     {"--floats", nullptr},
     {"--signature", "a name"},
     {"--threads", "a number"},
     {"--runs", "a number"},
     {"--trace", "a folder"},
     {"--profile", nullptr}},
    1,
    run};

}  // namespace pyquant::cli
