// SPDX-License-Identifier: Apache-2.0
// Files: a read-only mapping, and a file that is written completely or not at all.
// What the bytes mean is left to the callers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "circle/ir.h"
#include "pyquant/status.h"

namespace pyquant::circle {

/// A file mapped read-only for the lifetime of this object.
class Mapping {
 public:
  static Result<std::shared_ptr<const Mapping>> open(const std::string& path);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  Bytes bytes() const { return {static_cast<const uint8_t*>(data_), size_}; }

 private:
  Mapping(void* data, size_t size) : data_(data), size_(size) {}
  void* data_;
  size_t size_;
};

/// Writes a sibling temporary file; commit() syncs it and renames it over the target. Without commit it is
/// removed.
class AtomicFile {
 public:
  static Result<std::unique_ptr<AtomicFile>> create(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  Status write(Bytes bytes);
  Status commit();
  uint64_t written() const { return written_; }

 private:
  AtomicFile(std::string path, std::string folder) : path_(std::move(path)), folder_(std::move(folder)) {}
  Fault failure(const char* step) const;

  std::string path_;
  std::string folder_;
  std::string temporary_;
  int descriptor_ = -1;
  uint64_t written_ = 0;
};

/// The folder part of a path, "." when there is none.
std::string folder_of(const std::string& path);
/// One spelling for one file, whether it exists yet or not: links, "." and ".." resolved.
std::string resolved(const std::string& path);

}  // namespace pyquant::circle
