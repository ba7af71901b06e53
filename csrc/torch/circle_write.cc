// SPDX-License-Identifier: Apache-2.0
// circle_write: plan text and tensors to a .circle file. The tensors' own memory is streamed; parsing,
// checking and writing are csrc/circle.
#include <string>
#include <vector>

#include "pyquant/circle.h"
#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

// The Fault's text is between the mark and the end of the line; pyquant/ops/circle_write.py raises it as
// CircleError.
void raise_if(const Fault* fault) { PYQUANT_CHECK(!fault, fault->text()); }

int64_t circle_write(std::string text, std::vector<Tensor> constants, std::string path) {
  Result<circle::Plan> plan = circle::parse_plan(text, "plan");
  raise_if(plan.ok() ? nullptr : &plan.fault());
  std::vector<circle::Bytes> bytes;
  for (size_t i = 0; i < constants.size(); ++i) {
    const Tensor& t = constants[i];
    PYQUANT_CHECK(t.is_cpu() && t.is_contiguous(), "E_CONSTANT_DTYPE: constants[", i, "]: is ",
                  t.is_cpu() ? "not contiguous" : "not on the CPU", "; pass t.contiguous().cpu()");
    bytes.push_back({static_cast<const uint8_t*>(t.const_data_ptr()),
                     static_cast<size_t>(t.numel()) * static_cast<size_t>(t.element_size())});
  }
  const Status bound = circle::bind_constants(plan.value(), bytes);
  raise_if(bound.ok() ? nullptr : &bound.fault());
  const Result<circle::Written> written = circle::write_file(plan.value().model, path);
  raise_if(written.ok() ? nullptr : &written.fault());
  return static_cast<int64_t>(written.value().bytes);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("circle_write(str plan, Tensor[] constants, str path) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CompositeExplicitAutograd, m) {
  m.impl("circle_write", TORCH_BOX(&circle_write));
}

}  // namespace pyquant::torch_ops
