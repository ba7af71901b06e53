// SPDX-License-Identifier: Apache-2.0
// gptq_solve: the integers of a weight, chosen column by column with the error moved on.
#include <cmath>
#include <vector>

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

std::tuple<Tensor, Tensor> gptq_solve(const Tensor& weight_, const Tensor& hinv_, const Tensor& scale,
                                      const Tensor& zero_point, int64_t group, int64_t qmin, int64_t qmax) {
  const char* op = "gptq_solve";
  check_dtype(op, "weight", weight_, ScalarType::Float);
  PYQUANT_CHECK(weight_.dim() == 2, op, ": weight has shape ", shape_text(weight_),
                "; expected (rows, columns)");
  const int64_t rows = weight_.size(0), columns = weight_.size(1);
  check_dtype(op, "hinv", hinv_, ScalarType::Float);
  PYQUANT_CHECK(hinv_.dim() == 2 && hinv_.size(0) == columns && hinv_.size(1) == columns, op,
                ": hinv has shape ", shape_text(hinv_), "; weight of shape ", shape_text(weight_), " needs (",
                columns, ", ", columns, ")");
  const Scales scales(op, weight_, scale, zero_point, group == 0 ? 0 : 1, group, qmin, qmax);
  const Tensor weight = dense(weight_), hinv = dense(hinv_);
  const float* factor = in<float>(hinv);
  for (int64_t j = 0; j < columns; ++j) {
    const float d = factor[j * columns + j];
    PYQUANT_CHECK(d > 0.0f && std::isfinite(d), op, ": hinv[", j, ", ", j, "] is ", d,
                  "; expected the upper Cholesky factor of an inverse Hessian, whose diagonal is positive; "
                  "damp the Hessian more");
  }
  const Tensor integers = torch::stable::new_empty(weight, {rows, columns}, ScalarType::Int);
  const Tensor loss = torch::stable::new_empty(weight, {rows}, ScalarType::Float);
  std::vector<double> losses(rows, 0.0);
  const kernels::Gptq problem{rows,
                              columns,
                              factor,
                              scales.scale,
                              scales.zero_point,
                              group == 0 ? 1 : columns / group,
                              group == 0 ? columns : group,
                              {static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)},
                              out<int32_t>(integers),
                              losses.data()};
  if (rows > 0 && columns > 0) {
    constexpr int64_t kBlock = kernels::kGptqBlock, kErrors = kBlock * kernels::kPanel;
    const int64_t panels = kernels::panels_of(rows), strips = kernels::strips_of(columns);
    const int64_t step = strips * kernels::kStrip * kernels::kPanel;
    const Tensor work = torch::stable::new_empty(
        weight, {panels * (step + kErrors) + strips * kernels::kStrip * kBlock}, ScalarType::Float);
    float *packed = out<float>(work), *errors = packed + panels * step, *strip = errors + panels * kErrors;
    parallel(panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        kernels::gptq_pack_rows(in<float>(weight), rows, columns, p, packed + p * step);
      }
    });
    for (int64_t first = 0; first < columns; first += kBlock) {
      parallel(
          kernels::strips_of(columns - first), kGrain / (kBlock * kernels::kStrip),
          [&](int64_t begin, int64_t end) { kernels::gptq_pack_factor(problem, first, begin, end, strip); });
      parallel(panels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          kernels::gptq_solve_block(problem, first, p, strip, packed + p * step, errors + p * kErrors);
        }
      });
    }
  }
  for (int64_t r = 0; r < rows; ++r) out<float>(loss)[r] = static_cast<float>(0.5 * losses[r]);
  return {integers, loss};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def(
      "gptq_solve(Tensor weight, Tensor hinv, Tensor scale, Tensor zero_point, int group, int qmin, int "
      "qmax) "
      "-> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) { m.impl("gptq_solve", TORCH_BOX(&gptq_solve)); }

}  // namespace pyquant::torch_ops
