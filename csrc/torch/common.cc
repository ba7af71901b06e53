// SPDX-License-Identifier: Apache-2.0
#include "torch/common.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pyquant::torch_ops {
namespace {

/// The allocator takes memory of this size from the system each time, and gives it back.
[[maybe_unused]] constexpr size_t kFresh = size_t{32} << 20;

thread_local bool alone = false;

/// Advice only: where the system has no large pages, nothing changes.
void advise_large_pages([[maybe_unused]] const Tensor& t) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const size_t bytes = static_cast<size_t>(t.numel()) * t.element_size();
  if (bytes < kFresh) return;
  const auto begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

bool set_one_thread(bool on) { return std::exchange(alone, on); }

bool one_thread() { return alone; }

std::string shape_text(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + (t.dim() == 1 ? ",)" : ")");
}

const char* dtype_text(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

void check_cpu(const char* op, const char* name, const Tensor& t) {
  PYQUANT_CHECK(t.is_cpu(), op, ": ", name,
                " is on another device than the rest; move all tensors to one device");
}

void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType expected) {
  const ScalarType type = t.scalar_type();
  PYQUANT_CHECK(type == expected, op, ": ", name, " is ", dtype_text(type), "; expected ",
                dtype_text(expected));
  check_cpu(op, name, t);
}

void check_state(const char* op, const char* name, const Tensor& t, ScalarType expected, int64_t numel) {
  check_dtype(op, name, t, expected);
  PYQUANT_CHECK(t.numel() == numel, op, ": ", name, " has shape ", shape_text(t), "; expected ", numel,
                " elements");
  PYQUANT_CHECK(t.is_contiguous(), op, ": ", name, " is updated in place and must be contiguous");
}

Tensor empty_like(const Tensor& x, ScalarType dtype) {
  constexpr int64_t kFew = 8;
  const int64_t rank = x.dim();
  int64_t few[2 * kFew];
  std::vector<int64_t> many(rank > kFew ? 2 * rank : 0);
  int64_t *sizes = rank > kFew ? many.data() : few, *strides = sizes + rank;
  int64_t step = 1;
  for (int64_t d = rank - 1; d >= 0; --d) {
    sizes[d] = x.size(d);
    strides[d] = step;
    step *= std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(rank, sizes, strides, type, aoti_torch_device_type_cpu(), 0, &handle));
  Tensor y(handle);
  advise_large_pages(y);
  return y;
}

void check_grid(const char* op, int64_t qmin, int64_t qmax) {
  PYQUANT_CHECK(qmin >= -32768 && qmin < qmax && qmax <= 65535, op, ": the grid [", qmin, ", ", qmax,
                "] is invalid; expected -32768 <= qmin < qmax <= 65535");
}

void check_search_grid(const char* op, int64_t qmin, int64_t qmax, bool symmetric) {
  check_grid(op, qmin, qmax);
  PYQUANT_CHECK(!symmetric || qmax > 0, op, ": a symmetric grid needs a positive qmax, got ", qmax);
}

int64_t Granularity::scales(const Tensor& x) const {
  int64_t n = 1;
  if (axis < 0) return n;
  if (group == 0) return x.size(axis);
  for (int64_t d = 0; d < x.dim(); ++d) n *= scale_size(x, d);
  return n;
}

Granularity granularity(const char* op, const Tensor& x, Axis axis, int64_t group) {
  if (!axis.has_value()) {
    PYQUANT_CHECK(group == 0, op, ": group is ", group,
                  " and axis is None; groups need the axis that they divide");
    return {kernels::ScaleMap::per_tensor(x.numel()), 0, -1, 0};
  }
  const int64_t rank = x.dim(), a = *axis < 0 ? *axis + rank : *axis;
  PYQUANT_CHECK(a >= 0 && a < rank, op, ": axis ", *axis, " is out of range for x of shape ", shape_text(x));
  PYQUANT_CHECK(group >= 0, op, ": group is ", group,
                "; expected 0 (one scale per channel) or a positive size");
  int64_t outer = 1, inner = 1;
  for (int64_t d = 0; d < a; ++d) outer *= x.size(d);
  for (int64_t d = a + 1; d < rank; ++d) inner *= x.size(d);
  const int64_t channels = x.size(a);
  if (group == 0) return {kernels::ScaleMap::per_channel(outer, channels, inner), 1, a, 0};
  PYQUANT_CHECK(channels % group == 0, op, ": group ", group, " does not divide dimension ", a,
                " of x of shape ", shape_text(x));
  return {kernels::ScaleMap::per_group(outer, channels / group, group, inner), rank, a, group};
}

Tensor empty_scales(const Tensor& x, const Granularity& g) {
  std::vector<int64_t> shape(g.rank);
  for (int64_t d = 0; d < g.rank; ++d) shape[d] = g.scale_size(x, g.group ? d : g.axis);
  return torch::stable::new_empty(x, shape, ScalarType::Float);
}

Scales::Scales(const char* op, const Tensor& x, const Tensor& scale_, const Tensor& zero_point_, Axis axis,
               int64_t group, int64_t qmin, int64_t qmax) {
  check_cpu(op, "x", x);
  check_dtype(op, "scale", scale_, ScalarType::Float);
  check_dtype(op, "zero_point", zero_point_, ScalarType::Int);
  check_grid(op, qmin, qmax);
  const Granularity g = granularity(op, x, axis, group);
  for (const Tensor* t : {&scale_, &zero_point_}) {
    bool fits = t->dim() == g.rank;
    for (int64_t d = 0; fits && d < g.rank; ++d) fits = t->size(d) == g.scale_size(x, g.group ? d : g.axis);
    PYQUANT_CHECK(fits, op, ": ", t == &scale_ ? "scale" : "zero_point", " has shape ", shape_text(*t),
                  ", which does not fit x of shape ", shape_text(x), " with axis ",
                  axis ? std::to_string(*axis) : std::string("None"), " and group ", group,
                  "; expected () per tensor, (x.size(axis),) per channel, x's shape with axis divided by "
                  "group otherwise");
  }
  map = g.map;
  scale_tensor = dense(scale_);
  zero_point_tensor = dense(zero_point_);
  scale = in<float>(scale_tensor);
  zero_point = in<int32_t>(zero_point_tensor);
  const int64_t n = scale_tensor.numel();
  bool good = true;
  for (int64_t s = 0; s < n; ++s) {
    good &= scale[s] > 0.0f && scale[s] <= 3.40282347e+38f && zero_point[s] >= qmin && zero_point[s] <= qmax;
  }
  if (good) return;
  for (int64_t s = 0; s < n; ++s) {
    PYQUANT_CHECK(scale[s] > 0.0f && std::isfinite(scale[s]), op, ": scale number ", s, " is ", scale[s],
                  "; every scale must be finite and positive");
    PYQUANT_CHECK(zero_point[s] >= qmin && zero_point[s] <= qmax, op, ": zero_point number ", s, " is ",
                  zero_point[s], "; it must lie on the grid [", qmin, ", ", qmax, "]");
  }
}

}  // namespace pyquant::torch_ops
