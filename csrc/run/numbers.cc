// SPDX-License-Identifier: Apache-2.0
#include "run/numbers.h"

#include <vector>

#include "pyquant/kernels.h"

namespace pyquant::run {
namespace {

using circle::DType;
using circle::Tensor;

kernels::ScaleMap map_of(const Tensor& tensor, const std::vector<int32_t>& shape) {
  const int64_t count = *circle::element_count(shape);
  if (tensor.quant->scale.size() <= 1) return kernels::ScaleMap::per_tensor(count);
  const auto axis = static_cast<size_t>(tensor.quant->axis);
  int64_t outer = 1, inner = 1;
  for (size_t i = 0; i < shape.size(); ++i) (i < axis ? outer : inner) *= i == axis ? 1 : shape[i];
  return kernels::ScaleMap::per_channel(outer, shape[axis], inner);
}

std::vector<int32_t> zero_points(const Tensor& tensor) {
  return {tensor.quant->zero_point.begin(), tensor.quant->zero_point.end()};
}

// One type of stored integer, as a value that a lambda can take the type of.
template <typename Call>
void with_type(DType dtype, const Call& call) {
  if (dtype == DType::INT8) call(int8_t{});
  if (dtype == DType::UINT8) call(uint8_t{});
  if (dtype == DType::INT16) call(int16_t{});
}

}  // namespace

bool has_numbers(const Tensor& tensor) {
  const bool stored =
      tensor.dtype == DType::INT8 || tensor.dtype == DType::UINT8 || tensor.dtype == DType::INT16;
  return stored && tensor.quant && !tensor.quant->scale.empty();
}

void to_integers(const Tensor& tensor, const std::vector<int32_t>& shape, const float* values, void* out) {
  const kernels::ScaleMap map = map_of(tensor, shape);
  const circle::DTypeInfo& type = *circle::info(tensor.dtype);
  const Grid grid{static_cast<int32_t>(type.lowest), static_cast<int32_t>(type.highest)};
  const std::vector<int32_t> zeros = zero_points(tensor);
  with_type(tensor.dtype, [&](auto example) {
    kernels::quantize(values, static_cast<decltype(example)*>(out), map, tensor.quant->scale.data(),
                      zeros.data(), grid, 0, map.numel());
  });
}

void to_floats(const Tensor& tensor, const std::vector<int32_t>& shape, const void* integers, float* out) {
  const kernels::ScaleMap map = map_of(tensor, shape);
  const std::vector<int32_t> zeros = zero_points(tensor);
  with_type(tensor.dtype, [&](auto example) {
    kernels::dequantize(static_cast<const decltype(example)*>(integers), out, map, tensor.quant->scale.data(),
                        zeros.data(), 0, map.numel());
  });
}

}  // namespace pyquant::run
