// SPDX-License-Identifier: Apache-2.0
// Whatever the checker lets through runs without reading or writing outside a tensor, and gives the same bits
// on every machine. PYQUANT_RANDOM_RUNS=1000000 runs longer.
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "check.h"
#include "guarded_run.h"
#include "pyquant/kernels.h"
#include "random_operator.h"

namespace {

using namespace pyquant::circle;  // NOLINT: a test
using pyquant::kernels::Isa;

/// Values of inputs, most of which are such that the operator takes them.
run::Fill fill_of(run::RandomOperator& random) {
  return [&random](const Tensor& tensor, size_t count) {
    std::vector<uint8_t> values = random.bytes(count);
    if (tensor.dtype == DType::BOOL) {
      for (uint8_t& value : values) value &= 1;
    }
    if (is_index(tensor.dtype) && count > 0 && values[0] % 3 != 0) {
      values.assign(count, 0);  // indices that exist, mostly
    }
    return values;
  };
}

/// The outputs, with one NaN for all: which one an operation gives, IEEE 754 leaves open.
std::vector<std::vector<uint8_t>> outputs_of(const run::Ran& ran) {
  std::vector<std::vector<uint8_t>> outputs = ran.outputs;
  for (size_t k = 0; k < outputs.size(); ++k) {
    if (ran.program->outputs()[k].tensor->dtype != DType::FLOAT32) continue;
    for (size_t at = 0; at + 4 <= outputs[k].size(); at += 4) {
      float value;
      std::memcpy(&value, &outputs[k][at], sizeof value);
      if (!std::isnan(value)) continue;
      value = std::numeric_limits<float>::quiet_NaN();
      std::memcpy(&outputs[k][at], &value, sizeof value);
    }
  }
  return outputs;
}

}  // namespace

TEST(what_the_checker_lets_through_runs) {
  const long runs = run::random_runs(100'000);
  run::RandomOperator random(7);
  const run::Fill fill = fill_of(random);
  const auto workspace = std::make_shared<pyquant::run::Workspace>(2);
  std::map<std::string, int> ran;
  const auto& ops = all_ops();
  for (long i = 0; i < runs; ++i) {
    const OpInfo& op = ops[static_cast<size_t>(i) % ops.size()];
    const check::Context here("operator ", op.name, ", run ", i);
    if (run::run_guarded(random.draw(op), workspace, fill).end == run::End::Run) ++ran[op.name];
  }
  for (const OpInfo& op : ops)
    CHECK_MSG(ran[op.name] > 0, std::string(op.name) + " never ran: the draws are too wild");
}

TEST(an_operator_gives_the_same_with_every_instruction_set_and_number_of_threads) {
  const long runs = run::random_runs(20'000);
  run::RandomOperator random(8);
  const run::Fill fill = fill_of(random);
  const auto one = std::make_shared<pyquant::run::Workspace>(1),
             seven = std::make_shared<pyquant::run::Workspace>(7);
  const auto& ops = all_ops();
  for (long i = 0; i < runs; ++i) {
    const OpInfo& op = ops[static_cast<size_t>(i) % ops.size()];
    const check::Context here("operator ", op.name, ", run ", i);
    const Model model = random.draw(op);
    const run::Ran first = run::run_guarded(model, one, fill);
    if (first.end != run::End::Run) continue;
    for (Isa isa : {Isa::scalar, Isa::portable, Isa::avx2, Isa::avx512}) {
      if (!pyquant::kernels::set_isa(isa)) continue;
      const check::Context with(pyquant::kernels::isa_name(isa));
      size_t input = 0;
      const run::Ran again =
          run::run_guarded(model, seven, [&](const Tensor&, size_t) { return first.inputs[input++]; });
      CHECK(outputs_of(again) == outputs_of(first));
    }
    pyquant::kernels::set_isa(pyquant::kernels::best_isa());
  }
}
