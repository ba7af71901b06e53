// SPDX-License-Identifier: Apache-2.0
// The pool of threads: every part once, from one pool after the other, and in the child of a fork.
#include "kernels/threads.h"

#include <atomic>
#include <vector>

#include "../check.h"

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

using pyquant::kernels::Threads;

namespace {

/// Whether each of n parts is run once, by a thread of the pool.
bool runs_all(Threads& threads, int64_t n, int64_t grain) {
  std::vector<std::atomic<int>> times(static_cast<size_t>(n));
  std::atomic<bool> known{true};
  threads.run(n, grain, [&](int64_t begin, int64_t end, int thread) {
    if (thread < 0 || thread >= threads.count()) known = false;
    for (int64_t i = begin; i < end; ++i) ++times[static_cast<size_t>(i)];
  });
  for (const auto& each : times) {
    if (each != 1) return false;
  }
  return known;
}

}  // namespace

TEST(threads_run_every_part_once) {
  for (int count : {1, 2, 7}) {
    const check::Context here("threads ", count);
    Threads threads(count);
    CHECK_EQ(threads.count(), count);
    for (int64_t n : {0, 1, 2, 13, 1000}) {
      for (int64_t grain : {0, 1, 3, 64, 5000}) CHECK(runs_all(threads, n, grain));
    }
  }
  Threads none(0);
  CHECK(runs_all(none, 100, 1));
}

#if defined(__unix__)
TEST(threads_do_not_hang_in_a_fork) {
  // Many times: workers are about to sleep, or asleep, when the process forks.
  for (int turn = 0; turn < 200; ++turn) {
    auto* threads = new Threads(3);
    CHECK(runs_all(*threads, 100, 1));
    usleep(static_cast<useconds_t>(turn));
    const pid_t child = fork();
    if (child == 0) {
      alarm(30);
      const bool ran = runs_all(*threads, 100, 1);
      delete threads;
      _exit(ran ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
    delete threads;
    if (status != 0) return;
  }
}
#endif
