// SPDX-License-Identifier: Apache-2.0
// Whatever the checker lets through runs without reading or writing outside a tensor.
// PYQUANT_RANDOM_RUNS=1000000 runs longer.
#include <map>

#include "check.h"
#include "guarded_run.h"
#include "random_operator.h"

namespace {

using namespace pyquant::circle;  // NOLINT: a test

}  // namespace

TEST(what_the_checker_lets_through_runs) {
  const long runs = run::random_runs(100'000);
  run::RandomOperator random(7);
  const run::Fill fill = [&random](const Tensor& tensor, size_t count) {
    std::vector<uint8_t> values = random.bytes(count);
    if (tensor.dtype == DType::BOOL) {
      for (uint8_t& value : values) value &= 1;
    }
    if (is_index(tensor.dtype) && count > 0 && values[0] % 3 != 0) {
      values.assign(count, 0);  // indices that exist, mostly
    }
    return values;
  };
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
