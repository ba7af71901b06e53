// SPDX-License-Identifier: Apache-2.0
// Plans: what they say arrives in the model, errors say line and path, and a file's plan gives the file
// again.
#include "circle/plan.h"

#include "check.h"
#include "sample.h"

using namespace pyquant::circle;  // NOLINT

namespace {

std::string fault(std::string from, const std::string& to) {
  std::string text = sample::plan_text();
  text.replace(text.find(from), from.size(), to);
  const auto plan = parse_plan(text, "plan.json");
  return plan.ok() ? "accepted" : plan.fault().text();
}

}  // namespace

TEST(plan_to_model) {
  const Model m = sample::model();
  CHECK_EQ(m.graphs[0].name, "sample");
  CHECK_EQ(m.graphs[0].tensors.size(), size_t{8});
  CHECK_EQ(m.graphs[0].tensors[1].quant->zero_point[2], 255);
  CHECK_EQ(m.graphs[0].tensors[1].buffer, 1u);
  CHECK_EQ(m.buffers[3].bytes.size, size_t{8});
  CHECK_EQ(op_name(m.graphs[0].operators[0]), "FULLY_CONNECTED");
  CHECK(std::get<bool>(m.graphs[0].operators[0].options[2]));
  CHECK_EQ(std::get<float>(m.graphs[0].operators[1].options[0]), 1.0f);
  CHECK_EQ(m.metadata[0].buffer, 4u);
  CHECK(!m.is_constant(m.graphs[0].tensors[0]) && m.is_constant(m.graphs[0].tensors[1]));
}

TEST(plan_defaults_are_the_schemas) {
  const Model m = sample::one_op("ADD", {{"float32", {1}}, {"float32", {1}}}, {{"float32", {1}}});
  CHECK_EQ(std::get<int64_t>(m.graphs[0].operators[0].options[0]), 0);
  CHECK(std::get<bool>(m.graphs[0].operators[0].options[1]));  // pot_scale_int16
}

TEST(tensors_share_a_constant) {
  auto plan =
      parse_plan(R"({"format": "pyquant-plan", "version": 1, "operators": [], "inputs": [], "outputs": [0],
    "tensors": [{"name": "a", "dtype": "uint8", "shape": [2], "constant": 0},
                {"name": "b", "dtype": "int8", "shape": [2], "constant": 0}]})",
                 "plan");
  CHECK(plan.ok());
  CHECK_EQ(plan.value().model.graphs[0].tensors[1].buffer, 1u);
  CHECK_EQ(plan.value().constants.size(), size_t{1});
}

TEST(plan_errors_say_where) {
  CHECK_EQ(fault("[2, 4], \"quant\"", "[2, 1.5], \"quant\""),
           "E_PLAN_VALUE: plan.json, line 4, column 48, tensors[0].shape[1]: saw 1.5, expected an integer of "
           "32 bits");
  CHECK_EQ(fault("\"uint8\"", "\"byte\"")
               .rfind("E_PLAN_DTYPE: plan.json, line 4, column 26, tensors[0].dtype: saw dtype "
                      "'byte', expected one of float32, float16, bfloat16",
                      0),
           size_t{0});
  CHECK_EQ(fault("\"beta\": 1.0", "\"beta\": \"one\""),
           "E_PLAN_TYPE: plan.json, line 16, column 72, operators[1].options.beta: saw a string, expected a "
           "number");
  CHECK_EQ(fault("\"beta\"", "\"gamma\""),
           "E_PLAN_OPTION: plan.json, line 16, column 73, operators[1].options.gamma: SOFTMAX has no option "
           "'gamma'; it has beta");
  CHECK_EQ(fault("\"inputs\": [0], \"outputs\": [7],", "\"inputs\": [0],"),
           "E_PLAN_KEY: plan.json, line 1, column 1, plan: key 'outputs' is missing");
}

TEST(plan_of_a_model_is_the_model) {
  const Model m = sample::model();
  const auto text = dump_plan(m);
  CHECK(text.ok());
  CHECK_EQ(text.value().weights.size(), size_t{3});
  CHECK_EQ(text.value().weights[0].name, "w");
  auto again = parse_plan(text.value().json, "again");
  CHECK_MSG(again.ok(), again.ok() ? "" : again.fault().text());
  Safetensors weights;
  for (const WeightsEntry& entry : text.value().weights) weights.tensors[entry.name] = entry;
  CHECK(bind_constants(again.value(), weights).ok());
  for (const std::string& line : diff(m, again.value().model)) CHECK_MSG(false, line);
}

TEST(constants_of_one_name_are_told_apart) {
  Model m = sample::model();
  m.graphs[0].tensors[2].name = "w";
  const auto text = dump_plan(m);
  CHECK(text.ok());
  CHECK_EQ(text.value().weights[1].name, "w#2");
}

TEST(packed_constants_travel_as_bytes) {
  Model m = sample::one_op("DEQUANTIZE", {{"uint4", {3}, {1}, true}}, {{"float32", {3}}});
  const auto text = dump_plan(m);
  CHECK(text.ok());
  CHECK_EQ(text.value().weights[0].dtype, "U8");
  CHECK_EQ(text.value().weights[0].shape[0], 2);
}
