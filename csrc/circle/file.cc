// SPDX-License-Identifier: Apache-2.0
// POSIX files behind file.h.
#include "circle/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pyquant::circle {
namespace {

constexpr size_t kChunk = size_t{8} << 20;

std::string reason() { return std::strerror(errno); }

bool is_folder(const std::string& path) {
  struct stat entry{};
  return ::stat(path.c_str(), &entry) == 0 && S_ISDIR(entry.st_mode);
}

/// A device, pipe or socket: a rename would put a plain file in its place.
bool is_special(const std::string& path) {
  struct stat entry{};
  return ::stat(path.c_str(), &entry) == 0 && !S_ISDIR(entry.st_mode) && !S_ISREG(entry.st_mode);
}

std::string real_path(const std::string& path) {
  char* real = ::realpath(path.c_str(), nullptr);
  const std::string result = real == nullptr ? "" : real;
  std::free(real);
  return result;
}

}  // namespace

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string resolved(const std::string& path) {
  const std::string whole = real_path(path);
  if (!whole.empty()) return whole;
  const size_t slash = path.rfind('/');
  return real_path(folder_of(path)) + '/' + (slash == std::string::npos ? path : path.substr(slash + 1));
}

Result<std::shared_ptr<const Mapping>> Mapping::open(const std::string& path) {
  // O_NONBLOCK: a named pipe without a writer is an error below, not waited for.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    return Fault{Code::E_OPEN, "cannot open for reading (" + reason() + "); check the path", path};
  }
  bool regular = false;
  size_t size = 0;
  const Identity identity = identity_of(descriptor, regular, size);
  if (!regular) {
    ::close(descriptor);
    return Fault{Code::E_OPEN, "not a regular file; a file is expected", path};
  }
  void* data = nullptr;
  if (size > 0) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) {
      const std::string why = reason();
      ::close(descriptor);
      return Fault{Code::E_OPEN, "cannot map " + std::to_string(size) + " bytes (" + why + ")", path};
    }
  }
  ::close(descriptor);
  return std::shared_ptr<const Mapping>(new Mapping(data, size, path, identity));
}

Mapping::Identity Mapping::identity_of(int descriptor, bool& regular, size_t& size) {
  struct stat entry{};
  regular = ::fstat(descriptor, &entry) == 0 && S_ISREG(entry.st_mode);
  size = regular ? static_cast<size_t>(entry.st_size) : 0;
#ifdef __APPLE__
  const timespec changed = entry.st_mtimespec;
#else
  const timespec changed = entry.st_mtim;
#endif
  return {static_cast<uint64_t>(entry.st_dev), static_cast<uint64_t>(entry.st_ino),
          static_cast<int64_t>(changed.tv_sec), static_cast<int64_t>(changed.tv_nsec)};
}

bool Mapping::has(Bytes part) const {
  const auto start = reinterpret_cast<uintptr_t>(data_), at = reinterpret_cast<uintptr_t>(part.data);
  return at >= start && at - start <= size_ && part.size <= size_ - (at - start);
}

int Mapping::reopen() const {
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return -1;
  bool regular = false;
  size_t size = 0;
  const Identity now = identity_of(descriptor, regular, size);
  const bool same = regular && size == size_ && now.device == identity_.device &&
                    now.number == identity_.number && now.seconds == identity_.seconds &&
                    now.nanoseconds == identity_.nanoseconds;
  if (same) return descriptor;
  ::close(descriptor);
  return -1;
}

Mapping::~Mapping() {
  if (size_ > 0) ::munmap(data_, size_);
}

Result<std::unique_ptr<AtomicFile>> AtomicFile::create(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    return Fault{Code::E_CREATE, path.empty() ? "the path is empty; name a file" : "the path has a NUL byte",
                 path};
  }
  std::unique_ptr<AtomicFile> file(new AtomicFile(path, folder_of(path)));
  if (!is_folder(file->folder_)) {
    return Fault{Code::E_NO_FOLDER, "folder '" + file->folder_ + "' does not exist; create it first", path};
  }
  if (is_folder(path)) {
    return Fault{Code::E_CREATE, "is a folder; name a file in it", path};
  }
  if (is_special(path)) {
    return Fault{Code::E_CREATE, "is a device, pipe or socket, not a regular file; name a file", path};
  }
  // A symbolic link keeps standing: the file that it names is the one replaced.
  if (std::string real = real_path(path); !real.empty()) {
    file->path_ = std::move(real);
    file->folder_ = folder_of(file->path_);
  }
  for (int attempt = 0; file->descriptor_ < 0 && attempt < 1000; ++attempt) {
    file->temporary_ = file->path_ + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    file->descriptor_ = ::open(file->temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file->descriptor_ < 0 && errno != EEXIST) break;
  }
  if (file->descriptor_ < 0) {
    const std::string why = reason();
    file->temporary_.clear();
    return Fault{Code::E_CREATE,
                 "cannot create a file in '" + file->folder_ + "' (" + why + "); check its permissions",
                 path};
  }
  struct stat old{};
  if (::stat(file->path_.c_str(), &old) == 0 && ::fchmod(file->descriptor_, old.st_mode & 07777) != 0) {
    return file->failure("keeping the old file's mode");
  }
  return file;
}

AtomicFile::~AtomicFile() {
  for (const auto& [mapping, descriptor] : sources_) {
    if (descriptor >= 0) ::close(descriptor);
  }
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Fault AtomicFile::failure(const char* step) const {
  const int error = errno;
  std::string message = std::string(step) + " failed after " + std::to_string(written_) + " bytes (" +
                        std::strerror(error) + "); ";
  message += error == ENOSPC || error == EDQUOT ? "free some space" : "check the disk and its limits";
  return {Code::E_WRITE, message + "; what stood there before is intact", path_};
}

Status AtomicFile::write(Bytes bytes) {
  while (bytes.size > 0) {
    const ssize_t count = ::write(descriptor_, bytes.data, std::min(bytes.size, kChunk));
    if (count < 0) {
      if (errno == EINTR) continue;
      return failure("writing");
    }
    bytes.data += count;
    bytes.size -= static_cast<size_t>(count);
    written_ += static_cast<uint64_t>(count);
  }
  return {};
}

int AtomicFile::source(const Mapping& from) {
  const auto [entry, is_new] = sources_.try_emplace(&from, -1);
  if (is_new) entry->second = from.reopen();
  return entry->second;
}

Status AtomicFile::copy(const Mapping& from, Bytes part) {
#ifdef __linux__
  const int descriptor = source(from);
  auto offset = static_cast<off_t>(part.data - from.bytes().data);
  while (descriptor >= 0 && part.size > 0) {
    const ssize_t count = ::copy_file_range(descriptor, &offset, descriptor_, nullptr, part.size, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)) {
      return failure("copying");
    }
    if (count < 0) break;  // not between these two: EXDEV, EINVAL, ENOSYS, EOPNOTSUPP
    if (count == 0) {
      return Fault{Code::E_WRITE,
                   "the file that it is copied from became shorter; leave it as it is meanwhile", path_};
    }
    part.data += count;
    part.size -= static_cast<size_t>(count);
    written_ += static_cast<uint64_t>(count);
  }
#endif
  return write(part);
}

Status AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) return failure("syncing");
  const int closed = ::close(descriptor_);
  descriptor_ = -1;
  if (closed != 0) return failure("closing");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return Fault{
        Code::E_RENAME,
        "cannot rename the finished file into place (" + reason() + "); what stood there before is intact",
        path_};
  }
  temporary_.clear();
  // The name itself must survive a crash too. A folder that cannot be synced (some network disks) is no
  // failure.
  const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
  return {};
}

}  // namespace pyquant::circle
