// SPDX-License-Identifier: Apache-2.0
#include "cli/prompts.h"

#include <algorithm>
#include <charconv>

#include "circle/file.h"
#include "circle/json.h"

namespace pyquant::cli {
namespace {

using circle::json::Kind;
using host::TokenRows;

constexpr const char* kInput = "the standard input";

/// Rows of token ids; with one row, all of `text` is that row.
Result<TokenRows> rows_of(const std::string& text, char between, int64_t batch, const std::string& where) {
  TokenRows rows;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(between, start), text.size());
    PYQUANT_TRY_ASSIGN(std::vector<int64_t> row,
                       integers(text.substr(start, end - start), ", \t\r\n", where));
    if (batch == 1 && !rows.empty()) {
      rows[0].insert(rows[0].end(), row.begin(), row.end());
    } else if (!row.empty() || between == ';') {
      rows.push_back(std::move(row));
    }
    start = end + 1;
  }
  return rows;
}

/// "1x16x24,1x8x8"
Result<std::vector<std::vector<int64_t>>> grids_of(const std::string& text) {
  std::vector<std::vector<int64_t>> found;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    PYQUANT_TRY_ASSIGN(std::vector<int64_t> grid, integers(text.substr(start, end - start), "x", "--grid"));
    found.push_back(std::move(grid));
    start = end + 1;
  }
  return found;
}

/// [1, 2, 3]
Result<std::vector<int64_t>> ids_of(const circle::json::Value& list) {
  std::vector<int64_t> found;
  for (const auto& item : list.items) {
    int64_t id = 0;
    if (item.kind != Kind::Number || !item.as_int(id)) {
      return usage(
          "\"ids\" has " +
              (item.kind == Kind::Number ? item.text : std::string(circle::json::kind_name(item.kind))) +
              ", expected a token id",
          kInput);
    }
    found.push_back(id);
  }
  return found;
}

/// [1, 2, 3], or a list of such rows.
Result<TokenRows> rows_in(const circle::json::Value* list) {
  if (!list || list->kind != Kind::Array) {
    return usage("a turn has no list \"ids\"; expected {\"ids\": [1, 2, 3], \"pixels\": \"p.safetensors\"}",
                 kInput);
  }
  TokenRows rows;
  if (list->items.empty() || list->items[0].kind != Kind::Array) {
    PYQUANT_TRY_ASSIGN(auto row, ids_of(*list));
    rows.push_back(std::move(row));
    return rows;
  }
  for (const auto& item : list->items) {
    if (item.kind != Kind::Array) return usage("\"ids\" has rows and something that is none", kInput);
    PYQUANT_TRY_ASSIGN(auto row, ids_of(item));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

Result<std::vector<int64_t>> integers(const std::string& text, const std::string& separators,
                                      const std::string& where) {
  std::vector<int64_t> found;
  for (size_t at = 0; at < text.size();) {
    if (separators.find(text[at]) != std::string::npos) {
      ++at;
      continue;
    }
    const size_t end = std::min(text.find_first_of(separators, at), text.size());
    int64_t value = 0;
    const auto [stop, error] = std::from_chars(text.data() + at, text.data() + end, value);
    if (error != std::errc() || stop != text.data() + end) {
      return usage("saw '" + text.substr(at, end - at) + "', expected an integer", where);
    }
    found.push_back(value);
    at = end;
  }
  return found;
}

Result<TokenRows> prompts_of(const Arguments& arguments, int64_t batch) {
  if (arguments.has("--ids")) return rows_of(arguments.get("--ids"), ';', batch, "--ids");
  const std::string path = arguments.get("--ids-file");
  PYQUANT_TRY_ASSIGN(const auto mapping, circle::Mapping::open(path));
  const circle::Bytes bytes = mapping->bytes();
  return rows_of(std::string(reinterpret_cast<const char*>(bytes.data), bytes.size), '\n', batch, path);
}

Result<host::Given> media_in(const host::Manifest& manifest, const std::string& file,
                             const std::string& grid) {
  PYQUANT_TRY_ASSIGN(const auto grids, grids_of(grid));
  PYQUANT_TRY_ASSIGN(const auto tensors, circle::read_safetensors(file));
  return host::media_of(manifest, tensors, grids);
}

Status read_turn(const host::Manifest& manifest, const std::string& line, host::Request& request) {
  const size_t first = line.find_first_not_of(" \t\r");
  if (first == std::string::npos || line[first] != '{') {
    PYQUANT_TRY_ASSIGN(request.prompts, rows_of(line, ';', manifest.batch, kInput));
    return {};
  }
  PYQUANT_TRY_ASSIGN(const auto turn, circle::json::parse(line, kInput));
  for (size_t i = 0; i < turn.keys.size(); ++i) {
    const std::string& key = turn.keys[i];
    if (key != "ids" && key != "pixels" && key != "grid") {
      return usage("a turn has \"" + key + "\", expected ids, pixels and grid", kInput);
    }
    if (key != "ids" && turn.items[i].kind != Kind::String) {
      return usage("\"" + key + "\" of a turn is " + circle::json::kind_name(turn.items[i].kind) +
                       ", expected a string",
                   kInput);
    }
  }
  PYQUANT_TRY_ASSIGN(request.prompts, rows_in(turn.find("ids")));
  const auto* pixels = turn.find("pixels");
  const auto* grid = turn.find("grid");
  if (!pixels && grid) return usage("a turn has \"grid\" without \"pixels\"", kInput);
  if (!pixels) return {};
  if (!request.media.empty()) {
    return usage("the first turn has \"pixels\", and --pixels has its images too; leave one of them out",
                 kInput);
  }
  PYQUANT_TRY_ASSIGN(request.media, media_in(manifest, pixels->text, grid ? grid->text : ""));
  return {};
}

}  // namespace pyquant::cli
