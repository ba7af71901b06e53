// SPDX-License-Identifier: Apache-2.0
// One text, weights file or path for each fault that reading and writing can give.
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>

#include "circle/json.h"
#include "circle/safetensors.h"
#include "fault_cases.h"

namespace {

using namespace pyquant::circle;  // NOLINT
using pyquant::Code;
using pyquant::Fault;
using sample::TempFolder;

template <typename R>
std::vector<Fault> fault_of(const R& result) {
  if (result.ok()) return {};
  return {result.fault()};
}

// The sample plan with one text replaced by another.
FaultCase plan(Code code, const std::string& from, const std::string& to) {
  return {code, [=] {
            std::string text = sample::plan_text();
            const size_t at = text.find(from);
            if (at == std::string::npos) return std::vector<Fault>();
            text.replace(at, from.size(), to);
            auto parsed = parse_plan(text, "plan");
            if (!parsed.ok()) return fault_of(parsed);
            return fault_of(bind_constants(parsed.value(), sample::constants()));
          }};
}

FaultCase plan_text(Code code, const std::string& text) {
  return {code, [=] { return fault_of(parse_plan(text, "plan")); }};
}

std::string safetensors(const std::string& header, size_t data) {
  std::string out(8, '\0');
  out[0] = static_cast<char>(header.size());
  return out + header + std::string(data, 'x');
}

FaultCase weights(Code code, const std::string& file) {
  return {code, [=] { return fault_of(parse_safetensors(sample::bytes_of(file), "w.safetensors")); }};
}

// Binds a plan that names "w" to a weights file that has only `header`.
FaultCase bound(Code code, const std::string& header, size_t data) {
  return {code, [=] {
            auto parsed = parse_plan(
                R"({"format": "pyquant-plan", "version": 1, "operators": [], "inputs": [], "outputs": [0],
                    "tensors": [{"name": "w", "dtype": "float32", "shape": [1], "constant": "w"}]})",
                "plan");
            const std::string file = safetensors(header, data);
            const auto entries = parse_safetensors(sample::bytes_of(file), "w.safetensors");
            if (!entries.ok()) return fault_of(entries);
            return fault_of(bind_constants(parsed.value(), entries.value()));
          }};
}

FaultCase written(Code code, std::function<std::string(const TempFolder&)> path) {
  return {code, [=] {
            const TempFolder folder;
            return fault_of(write_file(sample::model(), path(folder)));
          }};
}

// A file size limit stands in for a full disk; it needs no privileges.
std::vector<Fault> write_with_limit() {
  const TempFolder folder;
  rlimit old{}, low{};
  ::getrlimit(RLIMIT_FSIZE, &old);
  low = old;
  low.rlim_cur = 100;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &low);
  auto faults = fault_of(write_file(sample::model(), folder / "x.circle"));
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  if (!folder.names().empty()) faults.clear();  // the temporary file must be gone
  return faults;
}

// No disk gives this error in a test; the finished name becomes a folder between create and commit.
std::vector<Fault> rename_onto_folder() {
  const TempFolder folder;
  auto file = AtomicFile::create(folder / "x");
  if (!file.ok()) return fault_of(file);
  ::mkdir((folder / "x").c_str(), 0777);
  return fault_of(file.value()->commit());
}

std::vector<Fault> too_large() {
  const TempFolder folder;
  Model model = sample::one_op("NEG", {{"float32", {1}}}, {{"float32", {1}}});
  // No byte of it is read: the size alone is too much.
  static const uint8_t byte = 0;
  model.metadata = {{"big", 1}};
  model.buffers.push_back(Buffer{{&byte, size_t{2} << 30}, false, 0, 0});
  return fault_of(write_file(model, folder / "x.circle"));
}

std::vector<Fault> not_plannable() {
  Model model = sample::model();
  model.graphs[0].operators[0].op = nullptr;
  return fault_of(dump_plan(model));
}

}  // namespace

std::vector<FaultCase> input_cases() {
  const std::string entry = R"({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})";
  return {
      written(Code::E_NO_FOLDER, [](const TempFolder& f) { return f / "missing/x.circle"; }),
      written(Code::E_CREATE, [](const TempFolder& f) { return f.path(); }),
      {Code::E_OPEN, [] { return fault_of(read_file("/nowhere/x.circle")); }},
      {Code::E_OPEN, [] { return fault_of(read_file("/tmp")); }},
      {Code::E_WRITE, write_with_limit},
      {Code::E_RENAME, rename_onto_folder},
      {Code::E_TOO_LARGE, too_large},
      plan_text(Code::E_JSON_SYNTAX, "{\"format\": "),
      plan(Code::E_JSON_DUPLICATE_KEY, "\"version\": 1", "\"version\": 1, \"version\": 1"),
      plan_text(Code::E_JSON_DEPTH, std::string(100, '[')),
      plan_text(Code::E_PLAN_FORMAT, "{}"),
      plan(Code::E_PLAN_FORMAT, "\"version\": 1", "\"version\": 2"),
      plan(Code::E_PLAN_KEY, "\"dtype\": \"uint8\", ", ""),
      plan(Code::E_PLAN_KEY, "\"dtype\": \"uint8\", ", "\"dtype\": \"uint8\", \"colour\": 1, "),
      plan(Code::E_PLAN_TYPE, "\"shape\": [2, 4]", "\"shape\": 8"),
      plan(Code::E_PLAN_TYPE, "\"constant\": 1", "\"constant\": 1.5"),
      plan(Code::E_PLAN_VALUE, "[2, 4]", "[2, 4000000000]"),
      plan(Code::E_PLAN_VALUE, "0.0625", "1e99"),
      plan(Code::E_PLAN_DTYPE, "\"int32\"", "\"int33\""),
      plan(Code::E_PLAN_OPERATOR, "SOFTMAX", "SOFTMIN"),
      plan(Code::E_PLAN_OPTION, "\"beta\"", "\"gamma\""),
      plan(Code::E_PLAN_OPTION, "\"NONE\"", "\"SOME\""),
      plan(Code::E_CONSTANT_INDEX, "\"constant\": 2", "\"constant\": 3"),
      plan(Code::E_CONSTANT_INDEX, "\"constant\": 2", "\"constant\": \"perm\""),
      plan(Code::E_CONSTANT_UNUSED, ", \"constant\": 2", ""),
      bound(Code::E_CONSTANT_DTYPE, R"({"w": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}})", 4),
      {Code::E_NOT_PLANNABLE, not_plannable},
      weights(Code::E_WEIGHTS_FORMAT, "short"),
      weights(Code::E_WEIGHTS_FORMAT, std::string(20, '\x7f')),
      weights(Code::E_WEIGHTS_FORMAT, safetensors("[]", 0)),
      weights(Code::E_WEIGHTS_FORMAT, safetensors(R"({"w": {}})", 0)),
      weights(Code::E_WEIGHTS_RANGE, safetensors(entry, 3)),
      weights(Code::E_WEIGHTS_RANGE,
              safetensors(R"({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4)),
      weights(Code::E_WEIGHTS_OVERLAP, safetensors(entry, 5)),
      bound(Code::E_WEIGHTS_MISSING, R"({"v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})", 4),
      {Code::E_NOT_CIRCLE, [] { return fault_of(read_bytes(sample::bytes_of("TFL3TFL3TFL3"), "x")); }},
      {Code::E_FLATBUFFER,
       [] {
         auto file = sample::file();
         file.resize(file.size() / 2);
         return fault_of(read_bytes(sample::bytes_of(file), "x"));
       }},
  };
}
