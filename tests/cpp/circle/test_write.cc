// SPDX-License-Identifier: Apache-2.0
// Writing: the same bytes each time, both layouts, whole or not at all.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>

#include "check.h"
#include "circle/file.h"
#include "sample.h"

using namespace pyquant::circle;  // NOLINT
using pyquant::Code;

namespace {

std::vector<uint8_t> old_content() { return {'o', 'l', 'd'}; }

}  // namespace

TEST(same_input_same_bytes) {
  const auto first = sample::file();
  CHECK(first == sample::file());
  CHECK_EQ(first.size(), size_t{1480});
}

TEST(plan_of_a_file_gives_the_file) {
  const sample::TempFolder folder;
  for (const Layout layout : {Layout::Inline, Layout::External}) {
    const std::string a = folder / "a.circle", b = folder / "b.circle", w = folder / "w.safetensors";
    CHECK(write_file(sample::model(), a, Target::Circle, layout).ok());
    const auto text = dump_plan(read_file(a).value());
    CHECK(text.ok() && write_safetensors(text.value().weights, w).ok());
    auto plan = parse_plan(text.value().json, "again");
    CHECK(bind_constants(plan.value(), read_safetensors(w).value()).ok());
    CHECK(write_file(plan.value().model, b, Target::Circle, layout).ok());
    CHECK(sample::read_all(a) == sample::read_all(b));
  }
}

TEST(external_constants_stand_behind_the_tables) {
  const sample::TempFolder folder;
  const std::string path = folder / "x.circle";
  const auto written = write_file(sample::model(), path, Target::Circle, Layout::External);
  CHECK(written.ok() && written.value().external);
  const Model m = read_file(path).value();
  CHECK_EQ(sample::text(sample::faults(m, Target::Circle)), "no faults");
  for (size_t i = 1; i <= 3; ++i) {
    CHECK(m.buffers[i].external);
    CHECK_EQ(m.buffers[i].offset % 16, uint64_t{0});
  }
  CHECK(!m.buffers[4].external);  // metadata stays inside
  CHECK(diff(m, sample::model()).empty());
}

TEST(tiny_constants_stay_inside) {
  const sample::TempFolder folder;
  const std::string path = folder / "x.circle";
  const Model one =
      sample::one_op("ADD", {{"uint8", {2}, {1}}, {"uint8", {}, {1}, true}}, {{"uint8", {2}, {1}}});
  CHECK(write_file(one, path, Target::Circle, Layout::External).ok());
  const Model m = read_file(path).value();
  CHECK(!m.buffers[1].external && m.buffers[1].bytes.size == 1);
}

TEST(constant_without_elements) {
  const sample::TempFolder folder;
  const std::string path = folder / "x.circle";
  const Model none =
      sample::one_op("CONCATENATION", {{"float32", {2}}, {"float32", {0}, {}, true}}, {{"float32", {2}}});
  const auto written = write_file(none, path);
  CHECK_MSG(written.ok(), written.ok() ? "" : written.fault().text());
  CHECK_EQ(sample::text(sample::faults(read_file(path).value(), Target::Circle)), "no faults");
}

TEST(faults_leave_the_old_file) {
  const sample::TempFolder folder;
  const std::string path = folder / "x.circle";
  sample::write_all(path, old_content());
  Model m = sample::model();
  m.graphs[0].operators[0].inputs[0] = 42;
  const auto written = write_file(m, path);
  CHECK(!written.ok() && written.fault().code == Code::E_TENSOR_INDEX);
  CHECK(sample::read_all(path) == old_content());
  CHECK_EQ(folder.names().size(), size_t{1});
}

TEST(full_disk_leaves_the_old_file) {
  const sample::TempFolder folder;
  const std::string path = folder / "x.circle";
  sample::write_all(path, old_content());
  rlimit old{}, low{};
  ::getrlimit(RLIMIT_FSIZE, &old);
  low = old;
  low.rlim_cur = 512;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &low);
  const auto written = write_file(sample::model(), path);
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  CHECK(!written.ok() && written.fault().code == Code::E_WRITE);
  CHECK(written.ok() ||
        written.fault().text().find("what stood there before is intact") != std::string::npos);
  CHECK(sample::read_all(path) == old_content());
  CHECK_EQ(folder.names().size(), size_t{1});
}

TEST(old_file_keeps_mode_and_link) {
  const sample::TempFolder folder;
  const std::string path = folder / "x.circle", link = folder / "link.circle";
  sample::write_all(path, old_content());
  CHECK_EQ(::chmod(path.c_str(), 0640), 0);
  CHECK_EQ(::symlink(path.c_str(), link.c_str()), 0);
  CHECK(write_file(sample::model(), link).ok());
  struct stat entry{};
  CHECK_EQ(::lstat(link.c_str(), &entry), 0);
  CHECK(S_ISLNK(entry.st_mode));
  CHECK_EQ(::stat(path.c_str(), &entry), 0);
  CHECK_EQ(entry.st_mode & 0777, 0640u);
  CHECK(sample::read_all(path) == sample::file());
}

TEST(unbound_constants_are_not_written) {
  const sample::TempFolder folder;
  Model m = sample::model();
  m.buffers[1].bytes.data = nullptr;
  const auto written = write_file(m, folder / "x.circle");
  CHECK(!written.ok() && written.fault().code == Code::E_CONSTANT_INDEX);
}
