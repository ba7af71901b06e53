// SPDX-License-Identifier: Apache-2.0
// Files: a read-only mapping, and a file that is written completely or not at all.
// What the bytes mean is left to the callers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

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
  bool has(Bytes part) const;

  /// A descriptor of the file for reading, which the caller closes; -1 when another file has its name by now,
  /// or it was changed.
  int reopen() const;

 private:
  struct Identity {
    uint64_t device = 0, number = 0;
    int64_t seconds = 0, nanoseconds = 0;  // of the last change
  };
  Mapping(void* data, size_t size, std::string path, Identity identity)
      : data_(data), size_(size), path_(std::move(path)), identity_(identity) {}
  static Identity identity_of(int descriptor, bool& regular, size_t& size);
  void* data_;
  size_t size_;
  std::string path_;
  Identity identity_;
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
  /// The same of bytes of a mapped file, by copy_file_range where the system has it between the two: then the
  /// pages are not mapped in for it.
  Status copy(const Mapping& from, Bytes part);
  Status commit();
  uint64_t written() const { return written_; }

 private:
  AtomicFile(std::string path, std::string folder) : path_(std::move(path)), folder_(std::move(folder)) {}
  Fault failure(const char* step) const;
  int source(const Mapping& from);

  std::string path_;
  std::string folder_;
  std::string temporary_;
  int descriptor_ = -1;
  uint64_t written_ = 0;
  std::map<const Mapping*, int> sources_;  // -1: not the file that was mapped
};

/// The folder part of a path, "." when there is none.
std::string folder_of(const std::string& path);
/// One spelling for one file, whether it exists yet or not: links, "." and ".." resolved.
std::string resolved(const std::string& path);

}  // namespace pyquant::circle
