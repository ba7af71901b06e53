/* SPDX-License-Identifier: Apache-2.0 */
/* The same from C: prints the first values of each output. Open dimensions become 1; inputs of integers stay
 * zero. */
#include <pyquant/run_c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(void) {
  fprintf(stderr, "%s\n", pyquant_last_error());
  return 1;
}

static int no_room(const char* what) {
  fprintf(stderr, "there is no room for %s\n", what);
  exit(1);
}

static int fill(pyquant_graph* graph, size_t input) {
  const char* name = pyquant_input_name(graph, input);
  const size_t rank = pyquant_input_rank(graph, input);
  size_t count = 1, i;
  int32_t dims[8];
  float* values;
  int code;
  if (rank > 8) return no_room("an input of more than 8 dimensions");
  for (i = 0; i < rank; ++i) {
    dims[i] = pyquant_input_dim(graph, input, i);
    if (dims[i] < 0) dims[i] = 1;
    count *= (size_t)dims[i];
  }
  code = pyquant_set_shape(graph, name, dims, rank);
  if (code) return code;
  values = calloc(count ? count : 1, sizeof(float)); /* as wide as an int32 */
  if (!values) return no_room("the values of an input");
  if (!strcmp(pyquant_input_dtype(graph, input), "int32")) {
    code = pyquant_set_input(graph, name, values, count * sizeof(int32_t));
  } else {
    for (i = 0; i < count; ++i) values[i] = (float)(i % 100) / 100.0f;
    code = pyquant_set_floats(graph, name, values, count);
  }
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
  if (!values) return no_room("the values of an output");
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
