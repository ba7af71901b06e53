// SPDX-License-Identifier: Apache-2.0
#include "host/bundle.h"

#include <filesystem>
#include <set>

#include "circle/file.h"
#include "host/sha256.h"

namespace pyquant::host {
namespace {

Status check_file(const std::string& folder, const std::string& file, const FileFacts& facts,
                  const std::string& what, Checks checks) {
  const std::filesystem::path path = std::filesystem::path(folder) / file;
  if (file.empty() || path.filename() != file) {
    return Fault{Code::E_BUNDLE_FILE, what + " is '" + file + "', which is no file of the folder", folder};
  }
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) {
    return Fault{Code::E_BUNDLE_FILE, what + " is missing (" + error.message() + "); export the bundle again",
                 path.string()};
  }
  if (facts.bytes >= 0 && static_cast<uint64_t>(facts.bytes) != size) {
    return Fault{Code::E_BUNDLE_FILE,
                 what + " has " + std::to_string(size) + " bytes, the manifest says " +
                     std::to_string(facts.bytes) + "; export the bundle again",
                 path.string()};
  }
  if (checks == Checks::Sizes) return {};
  if (facts.sha256.empty()) {
    return Fault{Code::E_BUNDLE_FILE,
                 what +
                     " has no sha256 in the manifest to compare with; export the bundle again, or do not ask "
                     "for checksums",
                 path.string()};
  }
  PYQUANT_TRY_ASSIGN(const auto mapping, circle::Mapping::open(path.string()));
  if (const std::string seen = sha256(mapping->bytes().data, mapping->bytes().size); seen != facts.sha256) {
    return Fault{Code::E_BUNDLE_FILE,
                 what + " is not the file that was exported: its sha256 is " + seen + ", the manifest has " +
                     facts.sha256 + "; copy it anew, or export the bundle again",
                 path.string()};
  }
  return {};
}

}  // namespace

Result<Manifest> open_bundle(const std::string& folder, Checks checks) {
  const std::string path = (std::filesystem::path(folder) / "manifest.json").string();
  PYQUANT_TRY_ASSIGN(const auto mapping, circle::Mapping::open(path));
  const circle::Bytes bytes = mapping->bytes();
  PYQUANT_TRY_ASSIGN(Manifest manifest,
                     parse_manifest({reinterpret_cast<const char*>(bytes.data), bytes.size}, path));
  std::set<std::pair<std::string, std::string>> seen;  // graphs of one file say the same of it
  for (const auto& [name, graph] : manifest.graphs) {
    const bool again = !seen.emplace(graph.file, graph.facts.sha256).second;
    PYQUANT_TRY(
        check_file(folder, graph.file, graph.facts, "graph '" + name + "'", again ? Checks::Sizes : checks));
  }
  for (const auto& [file, facts] : manifest.files) {
    PYQUANT_TRY(check_file(folder, file, facts, "file '" + file + "'", checks));
  }
  for (const Table& table : manifest.tables) {
    PYQUANT_TRY(check_file(folder, table.file, {}, "table '" + table.name + "'", Checks::Sizes));
    if (checks == Checks::Checksums && !manifest.files.count(table.file)) {
      return Fault{Code::E_BUNDLE_FILE, "table '" + table.name + "' is in no file that `files` lists", path};
    }
  }
  return manifest;
}

}  // namespace pyquant::host
