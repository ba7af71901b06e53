// SPDX-License-Identifier: Apache-2.0
// Random numbers of a seed, the same on every machine: SplitMix64 (Steele, Lea, Flood 2014), one stream for
// each row.
#pragma once

#include <cstdint>

namespace pyquant::host {

class Random {
 public:
  explicit Random(uint64_t seed, uint64_t row = 0) : state_(mixed(seed) + mixed(row + 1)) {}

  uint64_t next() {
    state_ += kStep;
    return mixed(state_);
  }

  /// Each of 0 .. bound - 1 alike; bound > 0.
  uint64_t below(uint64_t bound) {
    const uint64_t unfair = (~uint64_t{0} - bound + 1) % bound;  // 2^64 modulo bound
    while (true) {
      const uint64_t value = next();
      if (value >= unfair) return value % bound;
    }
  }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
  static uint64_t mixed(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
  }

  uint64_t state_;
};

}  // namespace pyquant::host
