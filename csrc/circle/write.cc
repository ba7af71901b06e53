// SPDX-License-Identifier: Apache-2.0
// Plan, check, bytes, rename: lays the constants out behind the head of the file and streams them from where
// they are. Tables come from encode.cc, writing a file completely or not at all from file.cc.
#include <cstring>

#include "circle/encode.h"
#include "circle/file.h"
#include "pyquant/circle.h"

namespace pyquant::circle {
namespace {

constexpr uint64_t kAlignment = 16;
// Room for what readers add, below the 2^31 - 1 bytes that 32-bit offsets reach.
constexpr uint64_t kInlineLimit = (uint64_t{1} << 31) - 1 - (uint64_t{16} << 20);

struct Piece {
  uint32_t buffer;
  uint64_t position;  // of the data; an inline vector's length is in the 4 bytes before it
  bool external;
};

struct Placement {
  std::vector<Piece> pieces;
  uint64_t end = 0;
};

uint64_t align_up(uint64_t value) { return (value + kAlignment - 1) / kAlignment * kAlignment; }

Placement lay_out(const Model& model, const Head& head) {
  Placement plan;
  plan.end = head.bytes.size();
  // Vectors of the flatbuffer first: their offsets have 32 bits.
  for (const bool external : {false, true}) {
    for (const Head::Slot& slot : head.slots) {
      if ((slot.offset != 0) != external) continue;
      const uint64_t position = align_up(plan.end + (external ? 0 : 4));
      plan.pieces.push_back({slot.buffer, position, external});
      plan.end = position + model.buffers[slot.buffer].bytes.size;
    }
  }
  return plan;
}

void store(uint8_t* to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(value >> (8 * i));
}

void patch(const Model& model, const Placement& plan, Head& head) {
  std::vector<uint64_t> position(model.buffers.size(), 0);
  for (const Piece& piece : plan.pieces) position[piece.buffer] = piece.position;
  for (const Head::Slot& slot : head.slots) {
    if (slot.offset != 0) {
      store(&head.bytes[slot.offset], position[slot.buffer], 8);
      store(&head.bytes[slot.size], model.buffers[slot.buffer].bytes.size, 8);
    } else {
      store(&head.bytes[slot.data], position[slot.buffer] - 4 - slot.data, 4);
    }
  }
}

constexpr size_t kCopied = size_t{1} << 16;  // fewer bytes are written faster than they are copied

Status write_bytes(Bytes bytes, const Mapping* from, AtomicFile& file) {
  return from && bytes.size >= kCopied ? file.copy(*from, bytes) : file.write(bytes);
}

const Mapping* file_of(const Model& model, Bytes bytes) {
  for (const auto& mapping : model.files) {
    if (mapping->has(bytes)) return mapping.get();
  }
  return nullptr;
}

// The bytes of a buffer: those it has, else those that `fill` gives, which must be as many.
Status write_buffer(const Model& model, uint32_t number, AtomicFile& file, const Fill& fill) {
  const Bytes bytes = model.buffers[number].bytes;
  if (bytes.data || bytes.size == 0) return write_bytes(bytes, file_of(model, bytes), file);
  const uint64_t start = file.written();
  PYQUANT_TRY(fill(number, [&](Bytes next, const Mapping* from) -> Status {
    if (next.size > bytes.size - (file.written() - start)) {
      return Fault{Code::E_BUFFER_SIZE,
                   "was given more bytes than the " + std::to_string(bytes.size) + " it has",
                   "buffers[" + std::to_string(number) + "]"};
    }
    return write_bytes(next, from, file);
  }));
  if (file.written() - start == bytes.size) return {};
  return Fault{
      Code::E_BUFFER_SIZE,
      "was given " + std::to_string(file.written() - start) + " bytes, it has " + std::to_string(bytes.size),
      "buffers[" + std::to_string(number) + "]"};
}

Status stream(const Model& model, const Placement& plan, const Head& head, AtomicFile& file,
              const Fill& fill) {
  static constexpr uint8_t kZeros[2 * kAlignment] = {};
  PYQUANT_TRY(file.write({head.bytes.data(), head.bytes.size()}));
  for (const Piece& piece : plan.pieces) {
    const Bytes bytes = model.buffers[piece.buffer].bytes;
    const uint64_t prefix = piece.external ? 0 : 4;
    PYQUANT_TRY(file.write({kZeros, static_cast<size_t>(piece.position - prefix - file.written())}));
    if (!piece.external) {
      uint8_t length[4];
      store(length, bytes.size, 4);
      PYQUANT_TRY(file.write({length, sizeof(length)}));
    }
    PYQUANT_TRY(write_buffer(model, piece.buffer, file, fill));
  }
  return {};
}

Status refuse_faults(const Model& model, const std::string& path, Target target, bool filled) {
  std::vector<Fault> faults = check(model, target);
  if (faults.empty()) {
    for (size_t i = 1; !filled && i < model.buffers.size(); ++i) {
      if (model.buffers[i].bytes.size > 0 && !model.buffers[i].bytes.data) {
        return Fault{Code::E_CONSTANT_INDEX, "no bytes were bound to it",
                     "buffers[" + std::to_string(i) + "]"};
      }
    }
    return {};
  }
  Fault first = std::move(faults[0]);
  if (faults.size() > 1) first.message += " (and " + std::to_string(faults.size() - 1) + " more faults)";
  first.message += "; " + path + " was not written";
  return first;
}

}  // namespace

Result<Written> write_file(const Model& model, const std::string& path, Target target, Layout layout,
                           const Fill& fill) {
  PYQUANT_TRY(refuse_faults(model, path, target, fill != nullptr));
  PYQUANT_TRY_ASSIGN(Head head, encode_head(model, layout == Layout::External));
  Placement plan = lay_out(model, head);
  if (!head.external && plan.end > kInlineLimit) {
    if (layout == Layout::Inline) {
      return Fault{Code::E_TOO_LARGE,
                   "needs " + std::to_string(plan.end) + " bytes, an inline file has at most " +
                       std::to_string(kInlineLimit) + "; use the external layout, which TICO reads",
                   path};
    }
    PYQUANT_TRY_ASSIGN(head, encode_head(model, true));
    plan = lay_out(model, head);
  }
  patch(model, plan, head);
  PYQUANT_TRY_ASSIGN(auto file, AtomicFile::create(path));
  PYQUANT_TRY(stream(model, plan, head, *file, fill));
  PYQUANT_TRY(file->commit());
  return Written{file->written(), head.external};
}

}  // namespace pyquant::circle
