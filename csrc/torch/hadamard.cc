// SPDX-License-Identifier: Apache-2.0
// hadamard_: products of the lines of a matrix with a Hadamard matrix, in place.
#include <algorithm>
#include <vector>

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

void hadamard_(const Tensor& x, const Tensor& core_) {
  const char* op = "hadamard_";
  check_dtype(op, "x", x, ScalarType::Double);
  check_dtype(op, "core", core_, ScalarType::Double);
  PYQUANT_CHECK(core_.dim() == 2 && core_.size(0) == core_.size(1) && core_.size(0) > 0, op,
                ": core has shape ", shape_text(core_), "; expected a square matrix");
  const int64_t order = core_.size(0);
  PYQUANT_CHECK(x.dim() >= 1, op, ": x has shape ", shape_text(x), "; expected (..., channels)");
  const int64_t n = x.size(x.dim() - 1), times = n / order;
  PYQUANT_CHECK(n > 0 && n % order == 0 && (times & (times - 1)) == 0, op, ": x of shape ", shape_text(x),
                " has ", n, " channels; expected ", order, " (of the core) times a power of two");
  check_state(op, "x", x, ScalarType::Double, x.numel());
  const Tensor core = dense(core_);
  const double* matrix = in<double>(core);
  double* values = out<double>(x);
  parallel(x.numel() / n, std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(order));
    kernels::hadamard(values + begin * n, end - begin, n, matrix, order, scratch.data());
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) { m.def("hadamard_(Tensor(a!) x, Tensor core) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) { m.impl("hadamard_", TORCH_BOX(&hadamard_)); }

}  // namespace pyquant::torch_ops
