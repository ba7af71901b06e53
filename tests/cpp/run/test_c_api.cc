// SPDX-License-Identifier: Apache-2.0
// The C functions without a file: NULL is a fault, never a crash. With files: tests/e2e/test_cpp_example.py.
#include <string>

#include "check.h"
#include "pyquant/run_c.h"

TEST(null_is_a_fault_in_c) {
  pyquant_file* file = nullptr;
  pyquant_graph* graph = nullptr;
  const void* data = nullptr;
  float x = 0;
  CHECK(pyquant_file_load(nullptr, 1, &file) != 0);
  CHECK_EQ(std::string(pyquant_last_error()), "E_RUN_INPUT: the call: path is NULL");
  CHECK(pyquant_file_load("x.circle", 1, nullptr) != 0);
  CHECK(pyquant_file_load("/nowhere/x.circle", 1, &file) != 0);
  CHECK(file == nullptr);
  CHECK_EQ(pyquant_file_signatures(nullptr), size_t{0});
  CHECK(pyquant_file_signature(nullptr, 0) == nullptr);
  CHECK(pyquant_graph_open(nullptr, "", &graph) != 0);
  CHECK_EQ(pyquant_graph_inputs(nullptr) + pyquant_graph_outputs(nullptr), size_t{0});
  CHECK(pyquant_input_name(nullptr, 0) == nullptr && pyquant_input_dtype(nullptr, 0) == nullptr);
  CHECK(pyquant_output_name(nullptr, 0) == nullptr && pyquant_output_dtype(nullptr, 0) == nullptr);
  CHECK_EQ(pyquant_input_rank(nullptr, 0) + pyquant_output_rank(nullptr, 0), size_t{0});
  CHECK_EQ(pyquant_input_dim(nullptr, 0, 0) + pyquant_output_dim(nullptr, 0, 0), 0);
  CHECK(pyquant_set_shape(nullptr, "x", nullptr, 0) != 0);
  CHECK(pyquant_set_input(nullptr, "x", &x, 4) != 0);
  CHECK(pyquant_set_floats(nullptr, "x", &x, 1) != 0);
  CHECK(pyquant_run(nullptr) != 0);
  CHECK(pyquant_output(nullptr, "y", &data, nullptr) != 0);
  CHECK(pyquant_get_floats(nullptr, "y", &x, 1) != 0);
  pyquant_graph_free(nullptr);
  pyquant_file_free(nullptr);
}
