// SPDX-License-Identifier: Apache-2.0
// The Python module `pyquant._C`: empty, because loading it is what registers the operators. Also private
// operators: two report what was built, one says which threads the others use.
#include <Python.h>

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

// Changes with every change of a schema; pyquant/ops/_native.py has the number that it was written for.
constexpr int64_t kAbi = 3;

int64_t abi() { return kAbi; }

// The instruction set in use (see kernels::Isa), after setting it if `isa` >= 0. An unknown or unsupported
// one changes nothing.
int64_t isa(int64_t isa) {
  if (isa >= 0 && isa <= static_cast<int64_t>(kernels::Isa::avx512)) {
    kernels::set_isa(static_cast<kernels::Isa>(isa));
  }
  return static_cast<int64_t>(kernels::active_isa());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("_abi() -> int");
  m.def("_isa(int isa) -> int");
  m.def("_one_thread(bool on) -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CompositeExplicitAutograd, m) {
  m.impl("_abi", TORCH_BOX(&abi));
  m.impl("_isa", TORCH_BOX(&isa));
  m.impl("_one_thread", TORCH_BOX(&set_one_thread));
}

}  // namespace pyquant::torch_ops

static PyModuleDef_Slot slots[] = {{0, nullptr}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                 "_C",
                                 "The native operators of pyquant.",
                                 0,
                                 nullptr,
                                 slots,
                                 nullptr,
                                 nullptr,
                                 nullptr};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&definition); }
