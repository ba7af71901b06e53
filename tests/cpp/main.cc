// SPDX-License-Identifier: Apache-2.0
// Runs the tests of one executable: all, or those whose names contain the first argument.
#include "check.h"

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  int run = 0;
  for (const check::Test& test : check::tests()) {
    if (std::string(test.name).find(only) == std::string::npos) continue;
    const int before = check::failures();
    test.run();
    ++run;
    if (check::failures() != before) std::cerr << "FAILED " << test.name << "\n";
  }
  std::cout << run << " tests, " << check::failures() << " failed checks\n";
  return run == 0 || check::failures() != 0 ? 1 : 0;
}
