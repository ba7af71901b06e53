// SPDX-License-Identifier: Apache-2.0
#include "run/workspace.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace pyquant::run {
namespace {

constexpr size_t kAlignment = 64;

// What the system lets this process use, which a container may limit.
int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u));
}

}  // namespace

Workspace::Workspace(int threads) : threads_(threads > 0 ? threads : available_cores()) {}

void Workspace::Free::operator()(uint8_t* block) const { std::free(block); }

Result<uint8_t*> Workspace::memory(size_t bytes) {
  if (bytes <= size_ && block_) return block_.get();
  block_.reset();  // first, so that both are not there at once
  size_ = 0;
  const size_t size = std::max((bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  block_.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, size)));
  if (!block_) {
    return Fault{Code::E_RUN_MEMORY, "the system has no block of " + std::to_string(size) + " bytes", ""};
  }
  size_ = size;
  return block_.get();
}

}  // namespace pyquant::run
