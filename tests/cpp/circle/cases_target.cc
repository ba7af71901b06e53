// SPDX-License-Identifier: Apache-2.0
// One model for each rule that the targets luci and onert add.
#include "fault_cases.h"

namespace {

using namespace pyquant::circle;  // NOLINT
using pyquant::Code;
using pyquant::Fault;
using sample::T;

FaultCase luci(Code code, std::function<void(Model&)> change) {
  return {code, [change = std::move(change)] {
            Model model = sample::model();
            change(model);
            return sample::faults(model, Target::Luci);
          }};
}

FaultCase luci(Code code, const std::string& op, std::vector<T> in, std::vector<T> out,
               const std::string& options = "{}") {
  return {code, [=] { return sample::faults(sample::one_op(op, in, out, options), Target::Luci); }};
}

FaultCase onert(Code code, const std::string& op, std::vector<T> in, std::vector<T> out,
                const std::string& options = "{}") {
  return {code, [=] { return sample::faults(sample::one_op(op, in, out, options), Target::Onert); }};
}

const T kNone = {nullptr, {}};

}  // namespace

std::vector<FaultCase> target_cases() {
  return {
      luci(Code::E_LUCI_DTYPE, "MUL", {{"int8", {2}, {1}}, {"int8", {2}, {1}}}, {{"int8", {2}, {1}}}),
      luci(Code::E_LUCI_DTYPE, "RSQRT", {{"float32", {2}}}, {{"float32", {2}}}),
      luci(Code::E_LUCI_WEIGHT_DTYPE, "FULLY_CONNECTED",
           {{"int16", {1, 2}, {1}}, {"uint8", {2, 2}, {1}, true}, kNone}, {{"int16", {1, 2}, {1}}}),
      luci(Code::E_LUCI_INDEX_DTYPE, "MEAN", {{"uint8", {2, 2}, {1}}, {"int64", {1}, {}, true}},
           {{"uint8", {2}, {1}}}),
      luci(Code::E_LUCI_BIAS_DTYPE, "FULLY_CONNECTED",
           {{"int16", {1, 2}, {1}}, {"int16", {2, 2}, {1}, true}, {"int32", {2}, {1}, true}},
           {{"int16", {1, 2}, {1}}}),
      luci(Code::E_LUCI_BIAS_SCALE, [](Model& m) { m.graphs[0].tensors[2].quant->scale[1] *= 1.5f; }),
      luci(Code::E_LUCI_BIAS_SCALE,
           [](Model& m) {
             m.graphs[0].tensors[2].quant->scale.resize(1);
             m.graphs[0].tensors[2].quant->zero_point.resize(1);
           }),
      luci(Code::E_LUCI_SAME_QPARAMS, "UNPACK", {{"uint8", {2}, {1}}},
           {{"uint8", {}, {1}}, {"uint8", {}, {2}}}, R"({"num": 2})"),
      luci(Code::E_LUCI_FIXED_QPARAMS, [](Model& m) { m.graphs[0].tensors[4].quant->scale[0] = 1.0f / 256; }),
      luci(Code::E_LUCI_FIXED_QPARAMS, "TANH", {{"uint8", {2}, {1}}}, {{"uint8", {2}, {1.0f / 128}}}),
      luci(Code::E_LUCI_INTEGER_SCALE, "FLOOR", {{"uint8", {2}, {1}}}, {{"uint8", {2}, {0.5f}}}),
      luci(Code::E_LUCI_GRANULARITY, "RELU", {{"uint8", {2}, {1, 2}}}, {{"uint8", {2}, {1}}}),
      luci(Code::E_LUCI_GRANULARITY, "FULLY_CONNECTED",
           {{"uint8", {1, 2}, {1}}, {"uint8", {2, 2}, {1, 2}, true, 1}, kNone}, {{"uint8", {1, 2}, {1}}}),

      onert(Code::E_ONERT_OPERATOR, "CEIL", {{"float32", {2}}}, {{"float32", {2}}}),
      onert(Code::E_ONERT_DTYPE, "ADD", {{"int16", {2}, {1}}, {"int16", {2}, {1}}}, {{"int16", {2}, {1}}}),
      onert(Code::E_ONERT_DTYPE, "FULLY_CONNECTED",
            {{"int8", {1, 2}, {1}}, {"int8", {2, 2}, {1}, true}, kNone}, {{"int8", {1, 2}, {1}}}),
      onert(Code::E_ONERT_DTYPE, "GATHER", {{"ggml_q8_0", {2, 32}, {}, true}, {"int32", {1}}},
            {{"float32", {1, 32}}}),
      onert(Code::E_ONERT_WRONG, "SPLIT_V",
            {{"float32", {4}}, {"int32", {2}, {}, true}, {"int32", {}, {}, true}},
            {{"float32", {2}}, {"float32", {2}}}, R"({"num_splits": 2})"),
      onert(Code::E_ONERT_WRONG, "FULLY_CONNECTED",
            {{"float32", {1, 2}}, {"int8", {2, 2}, {1, 2}, true}, kNone}, {{"float32", {1, 2}}}),
      onert(Code::E_ONERT_WRONG, "FULLY_CONNECTED",
            {{"uint8", {1, 2}, {1}}, {"int8", {2, 2}, {1}, true}, kNone}, {{"uint8", {1, 2}, {1}}}),
      onert(Code::E_ONERT_WRONG, "FULLY_CONNECTED",
            {{"float32", {1, 2}}, {"uint4", {2, 2}, {1}, true}, kNone}, {{"float32", {1, 2}}}),
      onert(Code::E_ONERT_WRONG, "ROPE",
            {{"float32", {1, 1, 2, 4}},
             {"float32", {1, 1, 2, 4}, {}, true},
             {"float32", {1, 1, 2, 4}, {}, true}},
            {{"float32", {1, 1, 2, 4}}}),
      onert(Code::E_ONERT_WRONG, "QUANTIZE", {{"float32", {2}}}, {{"int8", {2}, {1}}}),
      onert(Code::E_ONERT_WRONG, "DEQUANTIZE", {{"int8", {2}, {1, 2}, true}}, {{"float32", {2}}}),
      onert(Code::E_ONERT_RANK, "FULLY_CONNECTED",
            {{"float32", {1, 1, 2}}, {"float32", {2, 2}, {}, true}, kNone}, {{"float32", {1, 1, 2}}},
            R"({"keep_num_dims": true})"),
      onert(Code::E_ONERT_RANK, "RMS_NORM", {{"float32", {2, 4}}, {"float32", {4}, {}, true}},
            {{"float32", {2, 4}}}),
      onert(Code::E_ONERT_CONSTANT, "BATCH_MATMUL", {{"float32", {2, 2}, {}, true}, {"float32", {2, 2}}},
            {{"float32", {2, 2}}}),
      onert(Code::E_ONERT_BIAS, "CONV_2D",
            {{"float32", {1, 2, 2, 1}}, {"float32", {1, 1, 1, 1}, {}, true}, kNone},
            {{"float32", {1, 2, 2, 1}}}, R"({"stride_w": 1, "stride_h": 1})"),
      onert(Code::E_ONERT_QPARAMS, "CONCATENATION", {{"int8", {2}, {1}}, {"int8", {2}, {2}}},
            {{"int8", {4}, {1}}}),
      onert(Code::E_ONERT_IO, "RESHAPE", {{"int16", {2}, {1}}}, {{"int16", {1, 2}, {1}}}),
      onert(Code::E_ONERT_IO, "RESHAPE", {{"float32", {2}}}, {{"float32", {1, 1, 1, 1, 1, 1, 2}}}),
      {Code::E_ONERT_EXTERNAL,
       [] {
         const sample::TempFolder folder;
         const std::string path = folder / "x.circle";
         if (!write_file(sample::model(), path, Target::Circle, Layout::External).ok())
           return std::vector<Fault>();
         return sample::faults(read_file(path).value(), Target::Onert);
       }},
  };
}
