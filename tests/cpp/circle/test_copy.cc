// SPDX-License-Identifier: Apache-2.0
// Bytes of a mapped file go into another file: the same ones, whichever way the system copies them.
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>

#include "check.h"
#include "circle/file.h"
#include "sample.h"

namespace pyquant::circle {
namespace {

namespace fs = std::filesystem;

std::string read_text(const std::string& path) {
  const auto bytes = sample::read_all(path);
  return {bytes.begin(), bytes.end()};
}

void write_text(const std::string& path, const std::string& text) {
  sample::write_all(path, {text.begin(), text.end()});
}

// Three MiB and some, no two parts of which are equal.
std::string content() {
  std::string out;
  for (uint32_t i = 0; out.size() < (3u << 20) + 12345; ++i) out += std::to_string(i * 2654435761u) + ",";
  return out;
}

std::string copied(const Mapping& from, const std::string& path, size_t at, size_t size) {
  auto file = AtomicFile::create(path).value();
  CHECK(file->write({reinterpret_cast<const uint8_t*>("head"), 4}).ok());
  const Status status = file->copy(from, {from.bytes().data + at, size});
  CHECK_MSG(status.ok(), status.ok() ? "" : status.fault().text());
  CHECK(file->write({reinterpret_cast<const uint8_t*>("tail"), 4}).ok());
  CHECK_EQ(file->written(), uint64_t{size + 8});
  CHECK(file->commit().ok());
  return read_text(path);
}

void check_parts(const std::string& source, const std::string& target) {
  const std::string all = content();
  write_text(source, all);
  const auto mapping = Mapping::open(source).value();
  for (const size_t at : {size_t{0}, size_t{1}, size_t{4095}, size_t{4096}, size_t{1} << 20}) {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{4096}, (size_t{2} << 20) - 7, all.size() - at}) {
      if (at + size > all.size()) continue;
      CHECK(copied(*mapping, target, at, size) == "head" + all.substr(at, size) + "tail");
    }
  }
}

TEST(any_part_of_a_file_is_copied) {
  const sample::TempFolder folder;
  check_parts(folder / "from", folder / "to");
}

TEST(a_part_is_copied_to_another_device) {
  const sample::TempFolder folder;
  const fs::path memory = "/dev/shm";
  if (!fs::is_directory(memory)) return;
  const std::string there = memory / ("pyquant-copy-" + std::to_string(::getpid()));
  check_parts(there, folder / "to");
  check_parts(folder / "from", there);
  fs::remove(there);
}

TEST(a_file_that_lost_its_name_is_copied_from_memory) {
  const sample::TempFolder folder;
  const std::string from = folder / "from", all = content();
  write_text(from, all);
  const auto mapping = Mapping::open(from).value();
  fs::rename(from, folder / "moved");
  CHECK_EQ(mapping->reopen(), -1);
  CHECK(copied(*mapping, folder / "to", 5, 100000) == "head" + all.substr(5, 100000) + "tail");
  write_text(from, std::string(all.size(), 'x'));  // of the same name and size, and another file
  CHECK_EQ(mapping->reopen(), -1);
  CHECK(copied(*mapping, folder / "to", 5, 100000) == "head" + all.substr(5, 100000) + "tail");
}

TEST(a_disk_that_is_full_while_a_file_is_copied) {
  const sample::TempFolder folder;
  write_text(folder / "from", content());
  const auto mapping = Mapping::open(folder / "from").value();
  rlimit old{}, low{};
  ::getrlimit(RLIMIT_FSIZE, &old);
  low = old;
  low.rlim_cur = 1 << 20;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &low);
  Status status;
  {
    auto file = AtomicFile::create(folder / "to").value();
    status = file->copy(*mapping, mapping->bytes());
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  CHECK(!status.ok() && status.fault().code == Code::E_WRITE);
  CHECK_EQ(folder.names().size(), size_t{1});
}

TEST(a_mapping_knows_its_bytes) {
  const sample::TempFolder folder;
  write_text(folder / "from", "0123456789");
  const auto mapping = Mapping::open(folder / "from").value();
  const Bytes all = mapping->bytes();
  CHECK(mapping->has(all) && mapping->has({all.data + 10, 0}) && mapping->has({all.data + 3, 7}));
  CHECK(!mapping->has({all.data + 3, 8}) && !mapping->has({all.data - 1, 1}) && !mapping->has({nullptr, 1}));
}

}  // namespace
}  // namespace pyquant::circle
