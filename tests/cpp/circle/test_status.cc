// SPDX-License-Identifier: Apache-2.0
// Reading the alternative that a Status or Result does not have ends the process with a message.
#include "pyquant/status.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "check.h"

namespace {

using pyquant::Code;
using pyquant::Fault;
using pyquant::Result;
using pyquant::Status;

struct Ended {
  int signal;
  std::string text;
};

/// How a child process that does `work` ends, and what it writes to stderr.
template <class Work>
Ended in_child(Work work) {
  int ends[2];
  if (::pipe(ends) != 0) return {0, "no pipe"};
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], 2);
    work();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text;
  char part[256];
  for (ssize_t count; (count = ::read(ends[0], part, sizeof part)) > 0;) text.append(part, count);
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return {WIFSIGNALED(status) ? WTERMSIG(status) : 0, text};
}

const Fault kFault{Code::E_OPEN, "cannot open", "x.circle"};
const std::string kSaid = "pyquant: Result::value(): E_OPEN: x.circle: cannot open; ask ok() first\n";

}  // namespace

TEST(value_of_a_fault_aborts_with_its_text) {
  Result<std::string> failed(kFault);
  const Result<std::string>& same = failed;
  volatile size_t size = 0;
  for (const Ended& ended :
       {in_child([&] { size = failed.value().size(); }), in_child([&] { size = same.value().size(); }),
        in_child([&] { size = std::move(failed).value().size(); })}) {
    CHECK_EQ(ended.signal, SIGABRT);
    CHECK_EQ(ended.text, kSaid);
  }
}

TEST(fault_of_a_success_aborts) {
  const Ended result = in_child([] { (void)Result<int>(3).fault(); });
  CHECK_EQ(result.signal, SIGABRT);
  CHECK_EQ(result.text, "pyquant: Result::fault(): there is a value, no fault; ask ok() first\n");
  const Ended status = in_child([] { (void)Status().fault(); });
  CHECK_EQ(status.signal, SIGABRT);
  CHECK_EQ(status.text, "pyquant: Status::fault(): there is no fault; ask ok() first\n");
}

TEST(the_right_alternative_is_read) {
  Result<std::string> fine(std::string("bytes"));
  CHECK_EQ(fine.value(), "bytes");
  CHECK_EQ(std::move(fine).value(), "bytes");
  CHECK_EQ(Result<int>(kFault).fault().text(), "E_OPEN: x.circle: cannot open");
  CHECK_EQ(Status(kFault).fault().message, "cannot open");
}
