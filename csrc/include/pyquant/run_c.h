/* SPDX-License-Identifier: Apache-2.0 */
/* Running Circle files from C (and whatever calls C). Functions return 0, or the number of a fault; the text
 * of the last fault of this thread is pyquant_last_error(). Shapes, names and threads as in run.h; NULL where
 * something is expected is E_RUN_INPUT, no exception leaves them. */
#ifndef PYQUANT_RUN_C_H
#define PYQUANT_RUN_C_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PYQUANT_C_API __attribute__((visibility("default")))
#else
#define PYQUANT_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pyquant_file pyquant_file;
typedef struct pyquant_graph pyquant_graph;

/* "E_CODE: where: message" of the last call of this thread that failed; "" before. Valid until the next
 * failure. */
PYQUANT_C_API const char* pyquant_last_error(void);

/* threads: 0 for as many as the process may use. */
PYQUANT_C_API int pyquant_file_load(const char* path, int threads, pyquant_file** out);
PYQUANT_C_API void pyquant_file_free(pyquant_file* file);
PYQUANT_C_API size_t pyquant_file_signatures(const pyquant_file* file);
PYQUANT_C_API const char* pyquant_file_signature(const pyquant_file* file, size_t index);

/* signature: "" for the first graph. The graph keeps what it needs of the file. */
PYQUANT_C_API int pyquant_graph_open(const pyquant_file* file, const char* signature, pyquant_graph** out);
PYQUANT_C_API void pyquant_graph_free(pyquant_graph* graph);
PYQUANT_C_API size_t pyquant_graph_inputs(const pyquant_graph* graph);
PYQUANT_C_API size_t pyquant_graph_outputs(const pyquant_graph* graph);
/* Name, dtype ("int16") and rank of an input or output, valid as long as the graph; NULL and 0 beyond the
 * last. */
PYQUANT_C_API const char* pyquant_input_name(const pyquant_graph* graph, size_t index);
PYQUANT_C_API const char* pyquant_input_dtype(const pyquant_graph* graph, size_t index);
PYQUANT_C_API size_t pyquant_input_rank(const pyquant_graph* graph, size_t index);
PYQUANT_C_API const char* pyquant_output_name(const pyquant_graph* graph, size_t index);
PYQUANT_C_API const char* pyquant_output_dtype(const pyquant_graph* graph, size_t index);
/* The declared dimension of an input, -1 where it is open; of an output after a run, as it is. */
PYQUANT_C_API int32_t pyquant_input_dim(const pyquant_graph* graph, size_t index, size_t dim);
PYQUANT_C_API size_t pyquant_output_rank(const pyquant_graph* graph, size_t index);
PYQUANT_C_API int32_t pyquant_output_dim(const pyquant_graph* graph, size_t index, size_t dim);

PYQUANT_C_API int pyquant_set_shape(pyquant_graph* graph, const char* input, const int32_t* dims,
                                    size_t rank);
PYQUANT_C_API int pyquant_set_input(pyquant_graph* graph, const char* name, const void* data, size_t bytes);
PYQUANT_C_API int pyquant_set_floats(pyquant_graph* graph, const char* name, const float* values,
                                     size_t count);
PYQUANT_C_API int pyquant_run(pyquant_graph* graph);
/* The bytes of an output in its own dtype, valid until the next run. */
PYQUANT_C_API int pyquant_output(const pyquant_graph* graph, const char* name, const void** data,
                                 size_t* bytes);
PYQUANT_C_API int pyquant_get_floats(const pyquant_graph* graph, const char* name, float* values,
                                     size_t count);

#ifdef __cplusplus
}
#endif
#endif
