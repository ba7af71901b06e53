// SPDX-License-Identifier: Apache-2.0
// Runs a model whose tensors at the edge have exactly their bytes, between guards: a sanitizer sees every
// step outside of them, and guards catch writes without one.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "check.h"
#include "pyquant/circle.h"
#include "run/runner.h"

namespace run {

constexpr size_t kGuard = 64;
constexpr uint64_t kGuardedLimit = 1 << 22;  // bytes

/// Memory of exactly `size` bytes between guards.
struct Guarded {
  explicit Guarded(size_t bytes) : size(bytes), memory(bytes + 2 * kGuard, 0xa5) {}
  uint8_t* data() { return memory.data() + kGuard; }
  bool whole() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (memory[i] != 0xa5 || memory[kGuard + size + i] != 0xa5) return false;
    }
    return true;
  }
  size_t size;
  std::vector<uint8_t> memory;
};

/// What became of a model: refused by the checker, refused by the runner, or run.
enum class End { Refused, NotRun, Run };

struct Ran {
  End end = End::Refused;
  std::shared_ptr<const pyquant::run::Program> program;
  std::vector<std::vector<uint8_t>> inputs, outputs;
};

using Fill = std::function<std::vector<uint8_t>(const pyquant::circle::Tensor& tensor, size_t bytes)>;

/// `fill` gives the values of an input.
Ran run_guarded(pyquant::circle::Model model, const std::shared_ptr<pyquant::run::Workspace>& workspace,
                const Fill& fill);

/// PYQUANT_RANDOM_RUNS, or `runs` where it is not set.
long random_runs(long runs);

}  // namespace run
