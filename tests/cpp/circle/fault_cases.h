// SPDX-License-Identifier: Apache-2.0
// For each fault code, something that produces it. test_faults.cc runs them all and misses none.
#pragma once

#include <functional>
#include <vector>

#include "sample.h"

struct FaultCase {
  pyquant::Code code;
  std::function<std::vector<pyquant::Fault>()> produce;
};

std::vector<FaultCase> input_cases();   // files, JSON, plans, weights
std::vector<FaultCase> model_cases();   // what check() finds in any model
std::vector<FaultCase> target_cases();  // what targets add
