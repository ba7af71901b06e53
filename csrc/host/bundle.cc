// SPDX-License-Identifier: Apache-2.0
#include "host/bundle.h"

#include <filesystem>

#include "circle/file.h"

namespace pyquant::host {
namespace {

Status check_file(const std::string& folder, const std::string& file, int64_t bytes,
                  const std::string& what) {
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
  if (bytes >= 0 && static_cast<uint64_t>(bytes) != size) {
    return Fault{Code::E_BUNDLE_FILE,
                 what + " has " + std::to_string(size) + " bytes, the manifest says " +
                     std::to_string(bytes) + "; export the bundle again",
                 path.string()};
  }
  return {};
}

}  // namespace

Result<Manifest> open_bundle(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / "manifest.json").string();
  PYQUANT_TRY_ASSIGN(const auto mapping, circle::Mapping::open(path));
  const circle::Bytes bytes = mapping->bytes();
  PYQUANT_TRY_ASSIGN(Manifest manifest,
                     parse_manifest({reinterpret_cast<const char*>(bytes.data), bytes.size}, path));
  for (const auto& [name, graph] : manifest.graphs) {
    PYQUANT_TRY(check_file(folder, graph.file, graph.bytes, "graph '" + name + "'"));
  }
  for (const Table& table : manifest.tables) {
    PYQUANT_TRY(check_file(folder, table.file, -1, "table '" + table.name + "'"));
  }
  return manifest;
}

}  // namespace pyquant::host
