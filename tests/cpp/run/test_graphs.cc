// SPDX-License-Identifier: Apache-2.0
// What graphs of several operators do that random ones (test_random_graphs.cc) seldom do.
#include "check.h"
#include "run/runner.h"
#include "small_graph.h"

namespace {

using pyquant::Code;
using pyquant::run::Program;
using pyquant::run::Runner;
using pyquant::run::Workspace;
using run::DType;
using run::ints;
using run::Operand;
using run::Shape;
using run::SmallGraph;

std::shared_ptr<const Program> program_of(const SmallGraph& made) {
  auto program = Program::from_model(made.model, "small");
  CHECK_MSG(program.ok(), program.ok() ? "" : program.fault().text());
  return program.ok() ? program.value() : nullptr;
}

pyquant::Status prepared(const SmallGraph& made) {
  const auto program = program_of(made);
  return program ? Runner(program, std::make_shared<Workspace>(1)).prepare() : pyquant::Status();
}

Operand plain(DType dtype, const Shape& shape) { return {dtype, shape}; }

}  // namespace

TEST(values_of_a_renamed_constant_are_checked) {
  SmallGraph arg;
  const int32_t x = arg.input(plain(DType::FLOAT32, {2, 3}));
  const int32_t axis =
      arg.add("RESHAPE", {arg.tensor(ints({99})), arg.tensor(ints({}, Shape{0}))}, {plain(DType::INT32, {})});
  arg.output(arg.add("ARG_MAX", {x, axis}, {plain(DType::INT32, {2})}, {{"output_type", int64_t{2}}}));
  const auto no_axis = prepared(arg);
  CHECK(!no_axis.ok() && no_axis.fault().code == Code::E_RUN_SHAPE);

  SmallGraph slice;
  const int32_t all = slice.input(plain(DType::FLOAT32, {4}));
  const int32_t begin =
      slice.add("RESHAPE", {slice.tensor(ints({1000}, Shape{1, 1})), slice.tensor(ints({1}))},
                {plain(DType::INT32, {1})});
  slice.output(slice.add("SLICE", {all, begin, slice.tensor(ints({2}))}, {plain(DType::FLOAT32, {2})}));
  const auto outside = prepared(slice);
  CHECK(!outside.ok() && outside.fault().code == Code::E_RUN_SHAPE);
}
