// SPDX-License-Identifier: Apache-2.0
// Places in one block of memory for tensors that live at different times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyquant::run {

/// A tensor that is written by step `first` and read last by step `last`.
struct Lifetime {
  size_t bytes = 0;
  size_t first = 0;
  size_t last = 0;
  size_t offset = 0;  // where lay_out() puts it, a multiple of 64
};

/// Gives each an offset such that two that live at one time do not meet; returns the bytes of the whole. The
/// largest are placed first, each at the lowest place that is free (as TFLite's greedy-by-size planner does).
size_t lay_out(std::vector<Lifetime>& tensors);

}  // namespace pyquant::run
