// SPDX-License-Identifier: Apache-2.0
// What targets must not refuse: models that the runtimes compute correctly, as measured.
#include "check.h"
#include "sample.h"

using sample::T;
using sample::Target;

namespace {

const T kNone = {nullptr, {}};

void fine(const std::string& op, std::vector<T> in, std::vector<T> out, const std::string& options,
          Target target) {
  const auto faults = sample::faults(sample::one_op(op, in, out, options), target);
  CHECK_MSG(faults.empty(), op + ": " + sample::text(faults));
}

}  // namespace

TEST(onert_runs) {
  const auto onert = [](const std::string& op, std::vector<T> in, std::vector<T> out,
                        const std::string& options = "{}") { fine(op, in, out, options, Target::Onert); };
  const T f = {"float32", {2, 2}};
  onert("FULLY_CONNECTED", {f, {"float32", {3, 2}, {}, true}, {"float32", {3}, {}, true}},
        {{"float32", {2, 3}}});
  onert("FULLY_CONNECTED", {f, {"int8", {3, 2}, {1}, true}, kNone}, {{"float32", {2, 3}}});
  onert("FULLY_CONNECTED", {{"float32", {2, 32}}, {"ggml_q4_0", {3, 32}, {}, true}, kNone},
        {{"float32", {2, 3}}});
  onert("FULLY_CONNECTED", {{"uint8", {2, 2}, {1}}, {"uint8", {3, 2}, {1}, true}, {"int32", {3}, {1}, true}},
        {{"uint8", {2, 3}, {1}}});
  onert("BATCH_MATMUL", {f, f}, {f});
  onert("RMS_NORM", {{"float32", {1, 2, 2}}, {"float32", {2}, {}, true}}, {{"float32", {1, 2, 2}}});
  onert("GELU", {f}, {f});
  onert("SOFTMAX", {f}, {f}, R"({"beta": 1.0})");
  onert("GATHER", {{"ggml_q4_0", {4, 32}, {}, true}, {"int32", {1}}}, {{"float32", {1, 32}}});
  onert("CONCATENATION", {{"uint8", {2}, {1}}, {"uint8", {2}, {2}}}, {{"uint8", {4}, {1}}});
  onert("QUANTIZE", {f}, {{"uint8", {2, 2}, {1}}});
  onert("CAST", {{"int32", {2}}}, {{"float32", {2}}},
        R"({"in_data_type": "INT32", "out_data_type": "FLOAT32"})");
}

TEST(circle_takes) {
  const auto circle = [](const std::string& op, std::vector<T> in, std::vector<T> out,
                         const std::string& options = "{}") { fine(op, in, out, options, Target::Circle); };
  // int16 activations with 4-bit and 8-bit weights, bias int64 or int32; weight-only; no bias.
  for (const char* weight : {"uint4", "int4", "uint8", "int8", "int16"}) {
    for (const char* bias : {"int64", "int32"}) {
      circle("FULLY_CONNECTED",
             {{"int16", {2, 2}, {1}}, {weight, {3, 2}, {1, 2, 3}, true}, {bias, {3}, {1, 2, 3}, true}},
             {{"int16", {2, 3}, {1}}});
    }
    circle("FULLY_CONNECTED", {{"float32", {2, 2}}, {weight, {3, 2}, {1}, true}, kNone},
           {{"float32", {2, 3}}});
  }
  circle("FULLY_CONNECTED", {{"float32", {2, 4, 2}}, {"float32", {3, 2}, {}, true}, kNone},
         {{"float32", {8, 3}}});
  circle("FULLY_CONNECTED", {{"float32", {2, 4, 2}}, {"float32", {3, 2}, {}, true}, kNone},
         {{"float32", {2, 4, 3}}}, R"({"keep_num_dims": true})");
  circle("RMS_NORM", {{"int16", {1, 2}, {1}}, {"uint8", {2}, {1}, true}}, {{"int16", {1, 2}, {1}}},
         R"({"epsilon": 1e-6})");
  circle("BATCH_MATMUL", {{"uint8", {2, 1, 3, 4}, {1}}, {"uint8", {5, 4}, {1}, true}},
         {{"uint8", {2, 1, 3, 5}, {1}}}, R"({"adjoint_rhs": true})");
  circle("GATHER", {{"float32", {4, 2}}, {"int64", {3}}}, {{"float32", {3, 2}}});
  circle("RESHAPE", {{"float32", {4, 2}}}, {{"float32", {8}}}, R"({"new_shape": [-1]})");
  circle("SPLIT", {{"int32", {}, {}, true}, {"float32", {4}}}, {{"float32", {2}}, {"float32", {2}}},
         R"({"num_splits": 2})");
  circle("PACK", {{"float32", {2}}, {"float32", {2}}}, {{"float32", {2, 2}}},
         R"({"values_count": 2, "axis": 1})");
  circle("LESS", {{"int32", {2, 1}}, {"int32", {3}}}, {{"bool", {2, 3}}});
  circle("SELECT_V2", {{"bool", {2, 1}}, {"float32", {}}, {"float32", {3}}}, {{"float32", {2, 3}}});
  circle("ONE_HOT", {{"int32", {2}}, {"int32", {}}, {"float32", {}}, {"float32", {}}}, {{"float32", {2, 3}}},
         R"({"axis": -1})");
  circle("TOPK_V2", {{"float32", {5}}, {"int32", {}}}, {{"float32", {2}}, {"int32", {2}}});
  circle("ARG_MAX", {{"float32", {5}}, {"int32", {}, {}, true}}, {{"int64", {}}},
         R"({"output_type": "INT64"})");
  circle("SHAPE", {{"float32", {5, 2}}}, {{"int32", {2}}}, R"({"out_type": "INT32"})");
  circle("ADD", {{"bfloat16", {2}}, {"bfloat16", {}, {}, true}}, {{"bfloat16", {2}}});
}
