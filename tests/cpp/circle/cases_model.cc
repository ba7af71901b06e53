// SPDX-License-Identifier: Apache-2.0
// One edit of the valid sample for each fault that check() finds for every target.
#include <cmath>
#include <limits>

#include "fault_cases.h"

namespace {

using namespace pyquant::circle;  // NOLINT: the table below reads better
using pyquant::Code;
using pyquant::Fault;

FaultCase edit(Code code, std::function<void(Model&)> change) {
  return {code, [change = std::move(change)] {
            Model model = sample::model();
            change(model);
            return sample::faults(model, Target::Circle);
          }};
}

// The same on the model as a file has it, for what only files can say.
FaultCase edit_file(Code code, std::function<void(Model&)> change) {
  return {code, [change = std::move(change)] {
            const auto file = sample::file();
            auto model = read_bytes(sample::bytes_of(file), "sample");
            change(model.value());
            return sample::faults(model.value(), Target::Circle);
          }};
}

FaultCase one(Code code, const std::string& op, std::vector<sample::T> in, std::vector<sample::T> out,
              const std::string& options = "{}") {
  return {code, [=] { return sample::faults(sample::one_op(op, in, out, options), Target::Circle); }};
}

constexpr uint8_t kByte = 1;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

std::vector<FaultCase> model_cases() {
  return {
      edit(Code::E_VERSION, [](Model& m) { m.version = 3; }),
      edit(Code::E_SUBGRAPH_COUNT, [](Model& m) { m.graphs.clear(); }),
      edit(Code::E_BUFFER_ZERO, [](Model& m) { m.buffers[0].bytes = {&kByte, 1}; }),
      edit(Code::E_BUFFER_ZERO, [](Model& m) { m.buffers.clear(); }),
      edit(Code::E_BUFFER_INDEX, [](Model& m) { m.graphs[0].tensors[1].buffer = 99; }),
      edit(Code::E_BUFFER_INDEX, [](Model& m) { m.metadata[0].buffer = 99; }),
      edit_file(Code::E_BUFFER_RANGE, [](Model& m) { m.buffers[1] = {{}, true, m.file_size - 4, 12}; }),
      edit(Code::E_BUFFER_SIZE, [](Model& m) { m.buffers[1].bytes.size = 11; }),
      edit(Code::E_BUFFER_SIZE, [](Model& m) { m.graphs[0].tensors[1].dtype = DType::INT16; }),
      edit(Code::E_TENSOR_KIND, [](Model& m) { m.graphs[0].tensors[0].is_variable = true; }),
      edit(Code::E_TENSOR_KIND, [](Model& m) { m.graphs[0].tensors[1].is_sparse = true; }),
      edit(Code::E_TENSOR_NAME, [](Model& m) { m.graphs[0].tensors[3].name.clear(); }),
      edit(Code::E_DTYPE, [](Model& m) { m.graphs[0].tensors[3].dtype = static_cast<DType>(99); }),
      edit(Code::E_DTYPE, [](Model& m) { m.graphs[0].tensors[3].dtype = DType::STRING; }),
      edit(Code::E_SHAPE, [](Model& m) { m.graphs[0].tensors[3].shape[0] = -1; }),
      edit(Code::E_SHAPE, [](Model& m) { m.graphs[0].tensors[3].shape = {INT32_MAX, INT32_MAX, INT32_MAX}; }),
      edit(Code::E_SHAPE_SIGNATURE, [](Model& m) { m.graphs[0].tensors[0].shape_signature = {-1}; }),
      edit(Code::E_SHAPE_SIGNATURE, [](Model& m) { m.graphs[0].tensors[0].shape_signature = {3, 4}; }),
      edit_file(Code::E_OPCODE_INDEX, [](Model& m) { m.graphs[0].operators[1].opcode_index = 9; }),
      edit_file(Code::E_OPCODE_FIELDS, [](Model& m) { m.operator_codes[1].deprecated = 0; }),
      edit(Code::E_TENSOR_INDEX, [](Model& m) { m.graphs[0].operators[0].inputs[1] = 99; }),
      edit(Code::E_TENSOR_INDEX, [](Model& m) { m.graphs[0].operators[0].outputs[0] = -7; }),
      edit(Code::E_GRAPH_INDEX, [](Model& m) { m.graphs[0].inputs[0] = 8; }),
      edit(Code::E_GRAPH_INDEX, [](Model& m) { m.graphs[0].outputs[0] = -1; }),
      edit(Code::E_GRAPH_DUPLICATE, [](Model& m) { m.graphs[0].outputs.push_back(7); }),
      edit(Code::E_GRAPH_EMPTY, [](Model& m) { m.graphs[0].outputs.clear(); }),
      edit(Code::E_SIGNATURE, [](Model& m) { m.signatures[0].inputs[0].second = 3; }),
      edit(Code::E_SIGNATURE, [](Model& m) { m.signatures[0].outputs[0].first.clear(); }),
      edit(Code::E_SIGNATURE, [](Model& m) { m.signatures[0].subgraph = 1; }),
      edit(Code::E_METADATA, [](Model& m) { m.metadata.push_back(m.metadata[0]); }),
      edit(Code::E_OPERATOR_UNKNOWN,
           [](Model& m) {
             m.graphs[0].operators[3].op = nullptr;
             m.graphs[0].operators[3].code = 15;
           }),
      edit(Code::E_OPTIONS_MISSING, [](Model& m) { m.graphs[0].operators[1].has_options = false; }),
      edit(Code::E_OPTIONS_MISSING, [](Model& m) { m.graphs[0].operators[1].options_type = 0; }),
      edit(Code::E_OPTIONS_TYPE, [](Model& m) { m.graphs[0].operators[1].options_type = 11; }),
      edit(Code::E_OPTION_VALUE, [](Model& m) { m.graphs[0].operators[1].options[0] = 0.0f; }),
      edit(Code::E_OPTION_VALUE, [](Model& m) { m.graphs[0].operators[3].options[0] = int64_t{77}; }),
      one(Code::E_OPTION_VALUE, "CAST", {{"int32", {2}}}, {{"float32", {2}}}, R"({"in_data_type": "INT64"})"),
      one(Code::E_OPTION_VALUE, "CONCATENATION", {{"float32", {2}}, {"float32", {2}}}, {{"float32", {4}}},
          R"({"axis": 1})"),
      one(Code::E_OPTION_VALUE, "SPLIT", {{"int32", {}, {}, true}, {"float32", {4}}},
          {{"float32", {2}}, {"float32", {2}}}, R"({"num_splits": 3})"),
      one(Code::E_OPTION_VALUE, "RESHAPE", {{"float32", {4}}}, {{"float32", {2, 2}}},
          R"({"new_shape": [4, 1]})"),
      one(Code::E_OPTION_VALUE, "CONV_2D",
          {{"float32", {1, 4, 4, 1}}, {"float32", {1, 1, 1, 1}, {}, true}, {nullptr, {}}},
          {{"float32", {1, 4, 4, 1}}}),
      one(Code::E_OPTION_VALUE, "ADD", {{"int32", {2}}, {"int32", {2}}}, {{"int32", {2}}},
          R"({"fused_activation_function": "TANH"})"),
      one(Code::E_OPTION_VALUE, "ADD", {{"float32", {2}}, {"float32", {2}}}, {{"float32", {2}}},
          R"({"fused_activation_function": "SIGN_BIT"})"),
      one(Code::E_OPTION_VALUE, "FULLY_CONNECTED",
          {{"float32", {1, 2}}, {"float32", {8, 2}, {}, true}, {nullptr, {}}}, {{"float32", {1, 8}}},
          R"({"weights_format": "SHUFFLED16x1FLOAT32"})"),
      edit(Code::E_INPUT_COUNT, [](Model& m) { m.graphs[0].operators[0].inputs.pop_back(); }),
      edit(Code::E_INPUT_COUNT, [](Model& m) { m.graphs[0].operators[1].inputs.push_back(3); }),
      edit(Code::E_OUTPUT_COUNT, [](Model& m) { m.graphs[0].operators[3].outputs.clear(); }),
      edit(Code::E_OPERAND_MISSING, [](Model& m) { m.graphs[0].operators[1].inputs[0] = -1; }),
      edit(Code::E_OPERAND_DTYPE, [](Model& m) { m.graphs[0].tensors[3].dtype = DType::INT16; }),
      edit(Code::E_OPERAND_DTYPE, [](Model& m) { m.graphs[0].tensors[2].dtype = DType::INT64; }),
      edit(Code::E_OPERAND_DTYPE, [](Model& m) { m.graphs[0].tensors[5].dtype = DType::FLOAT32; }),
      one(Code::E_OPERAND_DTYPE, "CAST", {{"complex64", {2}}}, {{"float32", {2}}}),
      one(Code::E_OPERAND_DTYPE, "GATHER", {{"float32", {2, 32}}, {"int32", {2}}}, {{"ggml_q4_0", {2, 32}}}),
      one(Code::E_OPERAND_DTYPE, "LOGICAL_NOT", {{"float32", {2}}}, {{"float32", {2}}}),
      one(Code::E_OPERAND_DTYPE, "QUANTIZE", {{"float32", {2}}}, {{"float32", {2}}}),
      one(Code::E_OPERAND_DTYPE, "DEQUANTIZE", {{"float32", {2}}}, {{"float32", {2}}}),
      one(Code::E_OPERAND_DTYPE, "EQUAL", {{"float32", {2}}, {"float32", {2}}}, {{"float32", {2}}}),
      one(Code::E_OPERAND_DTYPE, "FULLY_CONNECTED",
          {{"uint8", {1, 2}, {1}}, {"float32", {2, 2}, {}, true}, {nullptr, {}}}, {{"uint8", {1, 2}, {1}}}),
      edit(Code::E_OPERAND_SHAPE, [](Model& m) { m.graphs[0].tensors[3].shape = {2, 4}; }),
      one(Code::E_OPERAND_SHAPE, "ADD", {{"float32", {2}}, {"float32", {3}}}, {{"float32", {3}}}),
      one(Code::E_OPERAND_SHAPE, "ADD", {{"float32", {2, 1}}, {"float32", {3}}}, {{"float32", {3, 2}}}),
      one(Code::E_OPERAND_SHAPE, "SELECT_V2", {{"bool", {2}}, {"float32", {1}}, {"float32", {}}},
          {{"float32", {1}}}),
      one(Code::E_OPERAND_SHAPE, "RESHAPE", {{"float32", {2, 3}}}, {{"float32", {5}}}),
      one(Code::E_OPERAND_SHAPE, "BATCH_MATMUL", {{"float32", {2, 3}}, {"float32", {2, 3}}},
          {{"float32", {2, 3}}}),
      one(Code::E_OPERAND_SHAPE, "CONCATENATION", {{"float32", {2, 2}}, {"float32", {2, 3}}},
          {{"float32", {4, 2}}}),
      one(Code::E_OPERAND_SHAPE, "SPLIT_V",
          {{"float32", {4}}, {"int32", {2}, {}, true}, {"int32", {}, {}, true}},
          {{"float32", {2}}, {"float32", {3}}}, R"({"num_splits": 2})"),
      one(Code::E_OPERAND_SHAPE, "TRANSPOSE", {{"float32", {2, 3}}, {"int32", {2}, {}, true}},
          {{"float32", {3, 2}}}),
      edit(Code::E_SCALE_COUNT, [](Model& m) { m.graphs[0].tensors[0].quant->zero_point = {0, 0}; }),
      edit(Code::E_SCALE_COUNT, [](Model& m) { m.graphs[0].tensors[0].quant->scale.clear(); }),
      edit(Code::E_SCALE_NOT_FINITE,
           [](Model& m) { m.graphs[0].tensors[0].quant->scale[0] = std::nanf(""); }),
      edit(Code::E_SCALE_NOT_FINITE, [](Model& m) { m.graphs[0].tensors[1].quant->scale[2] = kInfinity; }),
      edit(Code::E_SCALE_NOT_POSITIVE, [](Model& m) { m.graphs[0].tensors[0].quant->scale[0] = 0; }),
      edit(Code::E_SCALE_NOT_POSITIVE, [](Model& m) { m.graphs[0].tensors[0].quant->scale[0] = -0.5f; }),
      edit(Code::E_ZERO_POINT_RANGE, [](Model& m) { m.graphs[0].tensors[0].quant->zero_point[0] = 256; }),
      edit(Code::E_ZERO_POINT_RANGE, [](Model& m) { m.graphs[0].tensors[0].quant->zero_point[0] = -1; }),
      edit(Code::E_AXIS_RANGE, [](Model& m) { m.graphs[0].tensors[1].quant->axis = 2; }),
      edit(Code::E_AXIS_RANGE, [](Model& m) { m.graphs[0].tensors[1].quant->axis = -1; }),
      edit(Code::E_AXIS_COUNT, [](Model& m) { m.graphs[0].tensors[1].quant->axis = 1; }),
      edit(Code::E_AXIS_COUNT, [](Model& m) { m.graphs[0].tensors[1].shape_signature = {-1, 4}; }),
      edit(Code::E_QPARAMS_DTYPE, [](Model& m) { m.graphs[0].tensors[3].dtype = DType::FLOAT32; }),
      one(Code::E_QPARAMS_DTYPE, "ADD", {{"int32", {2}, {1}}, {"int32", {2}}}, {{"int32", {2}}}),
      one(Code::E_QPARAMS_DTYPE, "ARG_MAX", {{"float32", {2}}, {"int32", {}, {}, true}},
          {{"int32", {}, {1}}}),
      one(Code::E_QPARAMS_DTYPE, "CONCATENATION", {{"int32", {2}, {1}}, {"int32", {2}}}, {{"int32", {4}}},
          R"({"fused_activation_function": "RELU"})"),
      one(Code::E_QPARAMS_DTYPE, "SQUEEZE", {{"int64", {2}, {1}}}, {{"int64", {2}, {2}}}),
      one(Code::E_QPARAMS_MISSING, "CONCATENATION", {{"int8", {2}}, {"int8", {2}}}, {{"int8", {4}}},
          R"({"fused_activation_function": "RELU"})"),
      edit(Code::E_QPARAMS_MISSING, [](Model& m) { m.graphs[0].tensors[3].quant.reset(); }),
      edit(Code::E_QPARAMS_MISSING, [](Model& m) { m.graphs[0].tensors[2].quant.reset(); }),
      edit(Code::E_QPARAMS_DETAILS, [](Model& m) { m.graphs[0].tensors[1].quant->details = 3; }),
      edit(Code::E_PRODUCED_TWICE, [](Model& m) { m.graphs[0].operators[3].outputs[0] = 4; }),
      edit(Code::E_USED_BEFORE_PRODUCED,
           [](Model& m) { std::swap(m.graphs[0].operators[1], m.graphs[0].operators[2]); }),
      edit(Code::E_OUTPUT_NOT_PRODUCED, [](Model& m) { m.graphs[0].operators.pop_back(); }),
      edit(Code::E_CONSTANT_WRITTEN, [](Model& m) { m.graphs[0].operators[3].outputs[0] = 1; }),
      edit(Code::E_INPUT_WRITTEN, [](Model& m) { m.graphs[0].operators[3].outputs[0] = 0; }),
      edit(Code::E_INPUT_IS_CONSTANT, [](Model& m) { m.graphs[0].inputs.push_back(1); }),
  };
}
