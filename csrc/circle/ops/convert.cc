// SPDX-License-Identifier: Apache-2.0
// Between dtypes and grids: CAST, QUANTIZE, DEQUANTIZE.
#include "circle/ops/convert.h"

namespace pyquant::circle {
namespace {

void onert_quantize(const TargetCheck& it) {
  it.onert_dtypes();
  const Tensor *from = it.input(0), *to = it.output(0);
  if (!from || !to) return;
  if (is_float(from->dtype) && to->dtype == DType::INT8) {
    it.fault(Code::E_ONERT_WRONG, "float32 to int8 clamps negative values to 0; use uint8");
  } else if (from->dtype == to->dtype) {
    it.fault(Code::E_ONERT_DTYPE,
             "from " + name_of(from->dtype) + " to itself is not supported; DEQUANTIZE between");
  }
}

void onert_dequantize(const TargetCheck& it) {
  it.onert_dtypes();
  const Tensor* from = it.input(0);
  if (from && from->quant && from->quant->scale.size() > 1)
    it.fault(Code::E_ONERT_WRONG, "uses the first scale for every channel");
}

}  // namespace

std::vector<OpRow> convert_rows() {
  return {{"CAST", infer_same, prepare_cast},
          {"QUANTIZE", infer_same, prepare_quantize, onert_quantize},
          {"DEQUANTIZE", infer_same, prepare_dequantize, onert_dequantize}};
}

}  // namespace pyquant::circle
