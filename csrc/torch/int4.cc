// SPDX-License-Identifier: Apache-2.0
// pack_int4 and unpack_int4.
#include <atomic>

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

Tensor pack_int4(const Tensor& q_) {
  check_cpu("pack_int4", "q", q_);
  const ScalarType type = q_.scalar_type();
  PYQUANT_CHECK(type == ScalarType::Char || type == ScalarType::Byte, "pack_int4: q is ", dtype_text(type),
                "; expected int8 or uint8");
  const Tensor q = dense(q_);
  const int64_t n = q.numel(), bytes = (n + 1) / 2;
  Tensor packed = torch::stable::new_empty(q, {bytes}, ScalarType::Byte);
  uint8_t* to = out<uint8_t>(packed);
  std::atomic<bool> good{true};
  const auto pack = [&](auto* from) {
    parallel(bytes, kGrain, [&](int64_t begin, int64_t end) {
      if (!kernels::pack_int4(from + 2 * begin, std::min(2 * end, n) - 2 * begin, to + begin)) good = false;
    });
  };
  if (type == ScalarType::Char) {
    pack(in<int8_t>(q));
  } else {
    pack(in<uint8_t>(q));
  }
  PYQUANT_CHECK(good, "pack_int4: q has values that need more than 4 bits; expected ",
                type == ScalarType::Char ? "-8 to 7 (int8)" : "0 to 15 (uint8)");
  return packed;
}

Tensor unpack_int4(const Tensor& packed_, int64_t numel, bool is_signed) {
  const char* op = "unpack_int4";
  check_dtype(op, "packed", packed_, ScalarType::Byte);
  PYQUANT_CHECK(numel >= 0 && packed_.numel() == (numel + 1) / 2, op, ": packed has ", packed_.numel(),
                " bytes, but ", numel, " 4-bit integers take ", (numel + 1) / 2);
  const Tensor packed = dense(packed_);
  const uint8_t* from = in<uint8_t>(packed);
  Tensor q = torch::stable::new_empty(packed, {numel}, is_signed ? ScalarType::Char : ScalarType::Byte);
  const auto unpack = [&](auto* to) {
    parallel(packed.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernels::unpack_int4(from + begin, std::min(2 * end, numel) - 2 * begin, to + 2 * begin);
    });
  };
  if (is_signed) {
    unpack(out<int8_t>(q));
  } else {
    unpack(out<uint8_t>(q));
  }
  return q;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("pack_int4(Tensor q) -> Tensor");
  m.def("unpack_int4(Tensor packed, int numel, bool signed) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) {
  m.impl("pack_int4", TORCH_BOX(&pack_int4));
  m.impl("unpack_int4", TORCH_BOX(&unpack_int4));
}

}  // namespace pyquant::torch_ops
