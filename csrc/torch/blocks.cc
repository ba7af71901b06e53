// SPDX-License-Identifier: Apache-2.0
// quantize_blocks, dequantize_blocks and fake_quantize_blocks: ggml's Q4_0 (bits 4) and Q8_0 (bits 8).
#include <atomic>
#include <vector>

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

void check_bits(const char* op, int64_t bits) {
  PYQUANT_CHECK(bits == 4 || bits == 8, op, ": bits is ", bits, "; expected 4 (Q4_0) or 8 (Q8_0)");
}

/// The shape of `t` with another last dimension.
std::vector<int64_t> rows_of(const Tensor& t, int64_t last) {
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.back() = last;
  return shape;
}

/// Checks that the last dimension is made of blocks; how many there are in all.
int64_t count_blocks(const char* op, const char* name, const Tensor& t, int64_t width, int64_t bits) {
  check_bits(op, bits);
  PYQUANT_CHECK(t.dim() > 0 && t.size(t.dim() - 1) % width == 0, op, ": ", name, " has shape ", shape_text(t),
                "; its last dimension must be a multiple of ", width);
  return t.numel() / width;
}

void check_good(const char* op, bool good) {
  PYQUANT_CHECK(good, op,
                ": x has NaN, Inf, or a value too large for the half-precision scale of its block; expected "
                "magnitudes below 520000 (bits 4) or 8300000 (bits 8)");
}

Tensor quantize_blocks(const Tensor& x_, int64_t bits) {
  const char* op = "quantize_blocks";
  check_cpu(op, "x", x_);
  const int64_t blocks = count_blocks(op, "x", x_, kernels::kBlockLength, bits),
                bytes = kernels::block_bytes(bits);
  const Tensor x = dense(x_);
  Tensor packed = torch::stable::new_empty(x, rows_of(x, x.size(x.dim() - 1) / kernels::kBlockLength * bytes),
                                           ScalarType::Byte);
  uint8_t* to = out<uint8_t>(packed);
  std::atomic<bool> good{true};
  with_float(op, x, [&](auto type) {
    using T = decltype(type);
    const T* from = in<T>(x);
    parallel(blocks, kGrain / kernels::kBlockLength, [&](int64_t begin, int64_t end) {
      if (!kernels::quantize_blocks(from + begin * kernels::kBlockLength, end - begin, static_cast<int>(bits),
                                    to + begin * bytes))
        good = false;
    });
  });
  check_good(op, good);
  return packed;
}

Tensor dequantize_blocks(const Tensor& packed_, int64_t bits) {
  const char* op = "dequantize_blocks";
  check_dtype(op, "packed", packed_, ScalarType::Byte);
  check_bits(op, bits);
  const int64_t bytes = kernels::block_bytes(bits), blocks = count_blocks(op, "packed", packed_, bytes, bits);
  const Tensor packed = dense(packed_);
  Tensor x = torch::stable::new_empty(
      packed, rows_of(packed, packed.size(packed.dim() - 1) / bytes * kernels::kBlockLength),
      ScalarType::Float);
  const uint8_t* from = in<uint8_t>(packed);
  float* to = out<float>(x);
  parallel(blocks, kGrain / kernels::kBlockLength, [&](int64_t begin, int64_t end) {
    kernels::dequantize_blocks(from + begin * bytes, end - begin, static_cast<int>(bits),
                               to + begin * kernels::kBlockLength);
  });
  return x;
}

Tensor fake_quantize_blocks(const Tensor& x_, int64_t bits) {
  const char* op = "fake_quantize_blocks";
  check_cpu(op, "x", x_);
  const int64_t blocks = count_blocks(op, "x", x_, kernels::kBlockLength, bits);
  const Tensor x = dense(x_);
  Tensor y = torch::stable::new_empty(x, x.sizes());
  std::atomic<bool> good{true};
  with_float(op, x, [&](auto type) {
    using T = decltype(type);
    const T* from = in<T>(x);
    T* to = out<T>(y);
    parallel(blocks, kGrain / kernels::kBlockLength, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * kernels::kBlockLength;
      if (!kernels::fake_quantize_blocks(from + at, end - begin, static_cast<int>(bits), to + at))
        good = false;
    });
  });
  check_good(op, good);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) {
  m.def("quantize_blocks(Tensor x, int bits) -> Tensor");
  m.def("dequantize_blocks(Tensor packed, int bits) -> Tensor");
  m.def("fake_quantize_blocks(Tensor x, int bits) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) {
  m.impl("quantize_blocks", TORCH_BOX(&quantize_blocks));
  m.impl("dequantize_blocks", TORCH_BOX(&dequantize_blocks));
  m.impl("fake_quantize_blocks", TORCH_BOX(&fake_quantize_blocks));
}

}  // namespace pyquant::torch_ops
