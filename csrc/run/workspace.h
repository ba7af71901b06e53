// SPDX-License-Identifier: Apache-2.0
// What graphs that run one after another share: threads, and memory for tensors and scratch.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "kernels/threads.h"
#include "pyquant/status.h"

namespace pyquant::run {

class Workspace {
 public:
  /// threads: 0 for as many as the process may use. Runners of one workspace run one at a time; use several
  /// for graphs that run at the same time.
  explicit Workspace(int threads = 0);

  kernels::Threads& threads() { return threads_; }
  /// Runners hold it while they plan and run; a caller may, around calls that belong together.
  std::recursive_mutex& mutex() { return mutex_; }
  /// Of the thread that holds the mutex: whether a graph is running, so that this is its observer.
  bool is_running() const { return running_; }
  void set_running(bool running) { running_ = running; }
  /// At least so many bytes, aligned to 64; what was there before is gone. Held until the workspace goes.
  /// Fails with E_RUN_MEMORY.
  Result<uint8_t*> memory(size_t bytes);

 private:
  kernels::Threads threads_;
  std::recursive_mutex mutex_;
  bool running_ = false;
  struct Free {
    void operator()(uint8_t* block) const;
  };
  std::unique_ptr<uint8_t, Free> block_;
  size_t size_ = 0;
};

}  // namespace pyquant::run
