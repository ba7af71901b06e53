// SPDX-License-Identifier: Apache-2.0
// Running Circle files from C++: load, look at the inputs and outputs of a signature, run. Needs std alone;
// the C form of the same is run_c.h.
//
//   auto file = pyquant::File::load("model.circle");
//   auto graph = file.value().graph("decode");
//   std::vector<float> x(...), y(...);
//   graph.value().set_input("x", x.data(), x.size());       // floats, rounded to the tensor's grid
//   graph.value().run();
//   graph.value().get_output("y", y.data(), y.size());      // the floats that its integers stand for
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pyquant/status.h"

#if defined(__GNUC__)
#define PYQUANT_API __attribute__((visibility("default")))
#else
#define PYQUANT_API
#endif

namespace pyquant {

/// An input or output of a graph.
struct TensorInfo {
  std::string name;
  std::string dtype;           // "float32", "int16", ... as in a plan
  std::vector<int32_t> shape;  // -1 where it is open
  /// Of a quantized tensor, one for the tensor or one for each entry of dimension `axis`: an integer q stands
  /// for (q - zero_point) * scale. Empty otherwise.
  std::vector<float> scale;
  std::vector<int64_t> zero_point;
  int32_t axis = 0;
};

struct FileOptions {
  /// 0: as many as the process may use.
  int threads = 0;
  /// Bytes that one tensor, and all intermediate ones together, may take.
  uint64_t memory_limit = uint64_t{16} << 30;
};

/// One graph of a file, with memory for its inputs and outputs. Graphs of one file share threads and the
/// memory of intermediate tensors, so they run one at a time (from any thread); one graph is for one thread
/// at a time, as it keeps its inputs and outputs. Not copied; a moved-from graph may only be destroyed.
class PYQUANT_API Graph {
 public:
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;
  ~Graph();

  const std::vector<TensorInfo>& inputs() const;
  const std::vector<TensorInfo>& outputs() const;

  /// Sets the shape of an input with open dimensions; the shapes of outputs follow when the graph next runs.
  Status set_shape(const std::string& input, const std::vector<int32_t>& shape);
  /// Copies an input in its own dtype; `bytes` as its shape needs. 4-bit tensors are packed.
  Status set_input(const std::string& name, const void* data, size_t bytes);
  /// `count` real numbers, rounded to the grid of a quantized tensor (int8, uint8, int16), or of a float32
  /// one.
  Status set_input(const std::string& name, const float* values, size_t count);
  /// An input that stays where it is: read at each run until it is set again. In its own dtype, at a multiple
  /// of its size.
  Status bind_input(const std::string& name, const void* data, size_t bytes);

  /// Computes the outputs. Fails with E_RUN_INPUT when an input was never set, and as operators fail
  /// (E_RUN_VALUE).
  Status run();

  /// After run: the shape of an output, and its bytes in its own dtype, valid until the next run.
  Result<std::vector<int32_t>> output_shape(const std::string& name) const;
  Result<const void*> output(const std::string& name, size_t* bytes = nullptr) const;
  /// After run: the real numbers of an output that is quantized or float32.
  Status get_output(const std::string& name, float* values, size_t count) const;

 private:
  friend class File;
  struct State;
  explicit Graph(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// A file, mapped; constants are read from where they are. Replace a file that is in use, do not write into
/// it: reading beyond the end of a file that was cut ends the process with SIGBUS.
class PYQUANT_API File {
 public:
  /// Fails with the first fault of a file that is not whole and valid. Here and below, tensors for which
  /// there is no memory are E_RUN_MEMORY; small objects for which there is none are std::bad_alloc.
  static Result<File> load(const std::string& path, const FileOptions& options = {});

  /// Keys of its signatures; of a file without any, one empty key.
  std::vector<std::string> signatures() const;
  /// The graph of a signature; "": the first. Plans it when it first runs.
  Result<Graph> graph(const std::string& signature = "") const;

 private:
  struct State;
  explicit File(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

}  // namespace pyquant
