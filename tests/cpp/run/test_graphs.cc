// SPDX-License-Identifier: Apache-2.0
// What graphs of several operators do that random ones (test_random_graphs.cc) seldom do.
#include <limits>

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

TEST(a_signature_names_what_its_graph_takes) {
  SmallGraph g;
  const auto x = static_cast<uint32_t>(g.input(plain(DType::INT32, {2})));
  const auto y = static_cast<uint32_t>(g.add("NEG", {static_cast<int32_t>(x)}, {plain(DType::INT32, {2})}));
  g.output(static_cast<int32_t>(y));
  g.model.signatures = {{"one", 0, {{"a", x}}, {{"b", y}}}, {"two", 0, {{"c", x}}, {{"d", y}}}};
  for (const std::string key : {"", "one", "two"}) {
    const auto program = Program::from_model(g.model, "small", key);
    CHECK(program.ok());
    if (!program.ok()) return;
    CHECK_EQ(program.value()->inputs()[0].name, key == "two" ? "c" : "a");
    CHECK_EQ(program.value()->outputs()[0].name, key == "two" ? "d" : "b");
  }
}

TEST(outputs_of_one_name_have_two) {
  SmallGraph g;
  const int32_t x = g.input(plain(DType::INT32, {2}));
  for (int i = 0; i < 2; ++i) {
    const int32_t y = g.add("NEG", {x}, {plain(DType::INT32, {2})});
    g.graph().tensors[static_cast<size_t>(y)].name = "y";
    g.output(y);
  }
  const auto program = program_of(g);
  if (!program) return;
  CHECK_EQ(program->outputs()[0].name, "y");
  CHECK_EQ(program->outputs()[1].name, "y#2");
}

TEST(a_stride_of_any_size_takes_the_first) {
  for (const int64_t step : {INT64_MAX, INT64_MIN + 1}) {
    SmallGraph g;
    const int32_t x = g.input(plain(DType::INT32, {4}));
    const auto wide = [&](int64_t value) { return g.tensor(ints({value}, true, DType::INT64)); };
    const int32_t begin = wide(step > 0 ? 0 : 3), end = wide(step > 0 ? 4 : -5);
    g.output(g.add("STRIDED_SLICE", {x, begin, end, wide(step)}, {plain(DType::INT32, {1})}));
    const auto program = program_of(g);
    if (!program) return;
    Runner runner(program, std::make_shared<Workspace>(1));
    CHECK(runner.prepare().ok());
    const int32_t values[] = {5, 6, 7, 8};
    int32_t made = 0;
    CHECK(runner.run({values}, {&made}).ok());
    CHECK_EQ(made, step > 0 ? 5 : 8);
  }
}

TEST(softmax_of_a_negative_beta_is_refused) {
  for (const float beta : {-1.0f, std::numeric_limits<float>::infinity()}) {
    SmallGraph g;
    g.output(g.add("SOFTMAX", {g.input(plain(DType::FLOAT32, {4}))}, {plain(DType::FLOAT32, {4})},
                   {{"beta", beta}}));
    const auto program = Program::from_model(g.model, "small");
    if (!program.ok()) continue;
    const auto status = Runner(program.value(), std::make_shared<Workspace>(1)).prepare();
    CHECK(!status.ok() && status.fault().code == Code::E_RUN_UNSUPPORTED);
  }
}

TEST(an_observer_runs_no_graph_of_its_workspace) {
  SmallGraph g;
  g.output(g.add("NEG", {g.input(plain(DType::INT32, {2}))}, {plain(DType::INT32, {2})}));
  const auto program = program_of(g);
  if (!program) return;
  Runner runner(program, std::make_shared<Workspace>(2));
  CHECK(runner.prepare().ok());
  const int32_t x[] = {1, 2};
  int32_t y[2] = {}, unused[2] = {};
  int refused = 0;
  const Runner::Observer again = [&](int64_t, size_t, const Shape&, pyquant::circle::Bytes) {
    const auto status = runner.run({x}, {unused});
    refused += !status.ok() && status.fault().code == Code::E_RUN_INPUT ? 1 : 0;
  };
  CHECK(runner.run({x}, {y}, &again).ok());
  CHECK_EQ(refused, 2);
  CHECK_EQ(y[1], -2);
  CHECK(runner.run({x}, {y}).ok());
}

TEST(memory_that_is_no_place_for_an_element_is_refused) {
  SmallGraph g;
  g.output(g.add("NEG", {g.input(plain(DType::INT32, {2}))}, {plain(DType::INT32, {2})}));
  const auto program = program_of(g);
  if (!program) return;
  Runner runner(program, std::make_shared<Workspace>(1));
  CHECK(runner.prepare().ok());
  int32_t x[3] = {}, y[2] = {};
  const auto status = runner.run({reinterpret_cast<uint8_t*>(x) + 1}, {y});
  CHECK(!status.ok() && status.fault().code == Code::E_RUN_INPUT);
}
