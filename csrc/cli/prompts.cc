// SPDX-License-Identifier: Apache-2.0
#include "cli/prompts.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "circle/file.h"
#include "circle/json.h"

namespace pyquant::cli {
namespace {

using circle::json::Kind;
using host::TokenRows;

constexpr const char* kInput = "the standard input";

constexpr const char* kSpace = " \t\r\n";

/// Whether a comma has no number before or behind it.
bool has_gap(const std::string& text) {
  bool open = true;  // nothing since the beginning, or since a comma
  bool commas = false;
  for (const char c : text) {
    if (c == ',') {
      if (open) return true;
      open = commas = true;
    } else if (std::string_view(kSpace).find(c) == std::string_view::npos) {
      open = false;
    }
  }
  return commas && open;
}

Result<std::vector<int64_t>> row_of(const std::string& text, const std::string& where) {
  if (has_gap(text)) return usage("a comma has no token id on one side", where);
  return integers(text, std::string(",") + kSpace, where);
}

/// Rows of token ids, between `between`.
Result<TokenRows> rows_of(const std::string& text, char between, const std::string& where) {
  TokenRows rows;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(between, start), text.size());
    PYQUANT_TRY_ASSIGN(std::vector<int64_t> row, row_of(text.substr(start, end - start), where));
    if (!row.empty() || between == ';') rows.push_back(std::move(row));
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
  if (arguments.has("--ids")) return rows_of(arguments.get("--ids"), ';', "--ids");
  const std::string path = arguments.get("--ids-file");
  PYQUANT_TRY_ASSIGN(const auto mapping, circle::Mapping::open(path));
  const circle::Bytes bytes = mapping->bytes();
  const std::string text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  if (batch != 1) return rows_of(text, '\n', path);
  // One row: lines are as good as spaces.
  PYQUANT_TRY_ASSIGN(std::vector<int64_t> row, row_of(text, path));
  return TokenRows{std::move(row)};
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
    PYQUANT_TRY_ASSIGN(request.prompts, rows_of(line, ';', kInput));
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
