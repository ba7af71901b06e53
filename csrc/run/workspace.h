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
  std::mutex& mutex() { return mutex_; }
  /// At least so many bytes, aligned to 64; what was there before is gone. Held until the workspace goes.
  /// Fails with E_RUN_MEMORY.
  Result<uint8_t*> memory(size_t bytes);

 private:
  kernels::Threads threads_;
  std::mutex mutex_;
  struct Free {
    void operator()(uint8_t* block) const;
  };
  std::unique_ptr<uint8_t, Free> block_;
  size_t size_ = 0;
};

}  // namespace pyquant::run
