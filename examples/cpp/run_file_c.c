/* SPDX-License-Identifier: Apache-2.0 */
/* The same from C, for graphs whose inputs are numbers: prints the first value of each output. */
#include <pyquant/run_c.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(void) {
  fprintf(stderr, "%s\n", pyquant_last_error());
  return 1;
}

static int fill(pyquant_graph* graph, size_t input) {
  size_t count = 1, i;
  float* values;
  int code;
  for (i = 0; i < pyquant_input_rank(graph, input); ++i) count *= (size_t)pyquant_input_dim(graph, input, i);
  values = malloc((count ? count : 1) * sizeof(float));
  if (!values) return 1;
  for (i = 0; i < count; ++i) values[i] = (float)(i % 100) / 100.0f;
  code = pyquant_set_floats(graph, pyquant_input_name(graph, input), values, count);
  free(values);
  return code;
}

static int print(pyquant_graph* graph, size_t output) {
  size_t count = 1, i;
  float* values;
  int code;
  for (i = 0; i < pyquant_output_rank(graph, output); ++i)
    count *= (size_t)pyquant_output_dim(graph, output, i);
  values = malloc((count ? count : 1) * sizeof(float));
  if (!values) return 1;
  code = pyquant_get_floats(graph, pyquant_output_name(graph, output), values, count);
  if (!code) {
    printf("%s:", pyquant_output_name(graph, output));
    for (i = 0; i < count && i < 8; ++i) printf(" %.9g", (double)values[i]);
    printf("\n");
  }
  free(values);
  return code;
}

int main(int argc, char** argv) {
  pyquant_file* file = NULL;
  pyquant_graph* graph = NULL;
  size_t i;
  int code = 0;
  if (argc != 2) {
    fprintf(stderr, "usage: run_file_c x.circle\n");
    return 2;
  }
  if (pyquant_file_load(argv[1], 0, &file)) return fail();
  if (pyquant_graph_open(file, "", &graph)) {
    pyquant_file_free(file);
    return fail();
  }
  for (i = 0; !code && i < pyquant_graph_inputs(graph); ++i) code = fill(graph, i);
  if (!code) code = pyquant_run(graph);
  for (i = 0; !code && i < pyquant_graph_outputs(graph); ++i) code = print(graph, i);
  if (code) fail();
  pyquant_graph_free(graph);
  pyquant_file_free(file);
  return code ? 1 : 0;
}
