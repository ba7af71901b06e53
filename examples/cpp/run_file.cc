// SPDX-License-Identifier: Apache-2.0
// Runs the first graph of a file on inputs that count up (0, 1, 2 ... hundredths), and prints what comes out.
#include <pyquant/run.h>

#include <cstdio>

namespace {

int fail(const pyquant::Fault& fault) {
  std::fprintf(stderr, "%s\n", fault.text().c_str());
  return 1;
}

size_t elements(const std::vector<int32_t>& shape) {
  size_t count = 1;
  for (const int32_t dim : shape) count *= static_cast<size_t>(dim);
  return count;
}

// Open dimensions become 1; inputs of integers stay zero.
pyquant::Status fill(pyquant::Graph& graph, const pyquant::TensorInfo& input) {
  std::vector<int32_t> shape = input.shape;
  for (int32_t& dim : shape) dim = dim < 0 ? 1 : dim;
  PYQUANT_TRY(graph.set_shape(input.name, shape));
  const size_t count = elements(shape);
  if (input.dtype == "int32") {
    const std::vector<int32_t> zeros(count);
    return graph.set_input(input.name, zeros.data(), count * sizeof(int32_t));
  }
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 100) / 100.0f;
  return graph.set_input(input.name, values.data(), count);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: run_file x.circle\n");
    return 2;
  }
  const auto file = pyquant::File::load(argv[1]);
  if (!file.ok()) return fail(file.fault());
  auto opened = file.value().graph();
  if (!opened.ok()) return fail(opened.fault());
  pyquant::Graph graph = std::move(opened).value();
  for (const pyquant::TensorInfo& input : graph.inputs()) {
    if (const auto status = fill(graph, input); !status.ok()) return fail(status.fault());
  }
  if (const auto status = graph.run(); !status.ok()) return fail(status.fault());
  for (const pyquant::TensorInfo& output : graph.outputs()) {
    const auto shape = graph.output_shape(output.name);
    if (!shape.ok()) return fail(shape.fault());
    std::vector<float> values(elements(shape.value()));
    if (const auto status = graph.get_output(output.name, values.data(), values.size()); !status.ok()) {
      return fail(status.fault());
    }
    std::printf("%s:", output.name.c_str());
    for (size_t i = 0; i < values.size() && i < 8; ++i) std::printf(" %.9g", static_cast<double>(values[i]));
    std::printf("\n");
  }
  return 0;
}
