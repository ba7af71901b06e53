// SPDX-License-Identifier: Apache-2.0
// Circle files without torch or Python: read, check, write, inspect, compare. Errors are values
// (status.h). The structs that pass through are those of circle/ir.h; plans are those of circle/plan.h.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "circle/ir.h"
#include "circle/plan.h"
#include "pyquant/status.h"

namespace pyquant::circle {

/// Whose rules a model is checked by. Each has all the rules of Circle.
enum class Target : uint8_t {
  Circle,  // the format, and what TICO's reference runtime runs
  Luci,    // ONE's verifier of quantized models
  Onert,   // what onert 0.1.0 computes correctly
};
std::optional<Target> target_by_name(std::string_view name);
const char* target_names();  // "circle, luci, onert"

/// Maps and reads a file. Fails when its bytes are no Circle flatbuffer; the contents may still be wrong:
/// check().
Result<Model> read_file(const std::string& path);
/// The same on bytes that the caller keeps alive (or that `owner` keeps alive).
Result<Model> read_bytes(Bytes bytes, const std::string& what, std::shared_ptr<const void> owner = nullptr);

/// Every fault of a model, in the order of the file; empty when nothing is.
std::vector<Fault> check(const Model& model, Target target);

enum class Layout : uint8_t {
  Auto,      // inline below 2 GiB - 16 MiB, external above
  Inline,    // constants within the flatbuffer
  External,  // constants after it, addressed by Buffer.offset/size; TICO reads them, onert crashes
};
struct Written {
  uint64_t bytes = 0;
  bool external = false;
};
/// Takes the next bytes of a constant; `file` is the mapped file that they lie in, or null.
using Sink = std::function<Status(Bytes, const Mapping* file)>;
/// Hands the bytes of a buffer that has a size and no data to `sink`, in order, in as many pieces as it
/// likes.
using Fill = std::function<Status(uint32_t buffer, const Sink& sink)>;
/// Checks a bound plan or a read model against `target` and writes it, whole or not at all. Constants are
/// streamed from where they are; the extra memory is that of the tables. The same input gives the same bytes.
/// `fill` gives the bytes of buffers without data, once each, when their place in the file has come; checks
/// of values see only those that have data.
Result<Written> write_file(const Model& model, const std::string& path, Target target = Target::Circle,
                           Layout layout = Layout::Auto, const Fill& fill = nullptr);

/// A model of one graph, and the key of its signature in a file of several.
struct NamedModel {
  std::string key;
  const Model* model = nullptr;
};
/// One model of all graphs, in order, a signature each; constants of equal bytes are one buffer. Its bytes
/// are those of the parts, which it keeps mapped. Fails with E_SIGNATURE for keys that are empty or occur
/// twice, and parts of several graphs. TICO's reference runtime refuses such a file, and onert runs its first
/// graph.
Result<Model> join(const std::vector<NamedModel>& parts);

/// The contents of a file, as text.
std::string inspect_text(const Model& model, const std::string& title);
/// The same as JSON.
std::string inspect_json(const Model& model, const std::string& title);

/// One line for each difference between two models; empty when they are equal.
std::vector<std::string> diff(const Model& a, const Model& b);

}  // namespace pyquant::circle
