// SPDX-License-Identifier: Apache-2.0
// libFuzzer's entry point; PYQUANT_FUZZ_TARGET names one function of targets.h.
#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::PYQUANT_FUZZ_TARGET(data, size);
  return 0;
}
