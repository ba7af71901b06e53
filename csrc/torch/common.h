// SPDX-License-Identifier: Apache-2.0
// What the operators share: argument checks, scales as a ScaleMap, dtype dispatch, threads. Only headers of
// the LibTorch stable ABI are included in this room.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "pyquant/kernels.h"

namespace pyquant::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Axis = std::optional<int64_t>;

/// Raises RuntimeError; pyquant/ops turns what follows the mark into an OpArgumentError.
#define PYQUANT_CHECK(condition, ...) STD_TORCH_CHECK(condition, "[pyquant] ", __VA_ARGS__)

/// Elements that one thread takes at least; below it, no thread is used.
constexpr int64_t kGrain = 32768;

std::string shape_text(const Tensor& t);
const char* dtype_text(ScalarType type);
void check_cpu(const char* op, const char* name, const Tensor& t);
void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType expected);
/// Contiguous, for tensors that are updated in place.
void check_state(const char* op, const char* name, const Tensor& t, ScalarType expected, int64_t numel);
void check_grid(const char* op, int64_t qmin, int64_t qmax);
/// check_grid, and that a symmetric one has positive values.
void check_search_grid(const char* op, int64_t qmin, int64_t qmax, bool symmetric);

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

/// A contiguous CPU tensor of x's shape, not initialized. By torch's C function: torch::stable::new_empty
/// looks its operator up by name, which takes longer than rounding a small tensor. Large ones ask the system
/// for large pages, without which each new page is a fault: several times the time of the loop that fills it.
Tensor empty_like(const Tensor& x, ScalarType dtype);

/// The layout of x and its scales, and the shape of the scales.
struct Granularity {
  kernels::ScaleMap map;
  int64_t rank;  // of the scale
  int64_t axis;  // counted from the front; -1 per tensor
  int64_t group;

  int64_t scale_size(const Tensor& x, int64_t dim) const {
    if (group == 0) return x.size(axis);
    return dim == axis ? x.size(dim) / group : x.size(dim);
  }
  int64_t scales(const Tensor& x) const;
};
/// Raises for an axis out of range and for a group that does not divide.
Granularity granularity(const char* op, const Tensor& x, Axis axis, int64_t group);

/// A float32 tensor of the scales' shape.
Tensor empty_scales(const Tensor& x, const Granularity& g);

/// Checks scale and zero_point against x and the grid (also their values), and makes them contiguous.
struct Scales {
  Tensor scale_tensor, zero_point_tensor;
  kernels::ScaleMap map;
  const float* scale;
  const int32_t* zero_point;

  Scales(const char* op, const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis,
         int64_t group, int64_t qmin, int64_t qmax);
};

/// Has the calling thread do its operators' work alone (`on`), or with torch's threads again. Returns what
/// was.
bool set_one_thread(bool on);
bool one_thread();

/// f(begin, end) over [0, n), on torch's own threads when it is worth asking and the calling thread may (see
/// set_one_thread). f must not throw.
template <class F>
void parallel(int64_t n, int64_t grain, const F& f) {
  if (n <= grain || one_thread()) {
    if (n > 0) f(int64_t{0}, n);
  } else {
    torch::stable::parallel_for(0, n, grain, f);
  }
}

/// f(T{}) with the kernels' type for x's dtype.
template <class F>
auto with_float(const char* op, const Tensor& x, F&& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(kernels::BFloat16{});
    case ScalarType::Half:
      return f(kernels::Float16{});
    default:
      break;
  }
  PYQUANT_CHECK(false, op, ": x is ", dtype_text(x.scalar_type()), "; expected float32, bfloat16 or float16");
  throw std::logic_error("unreachable");
}

template <class F>
auto with_integer(const char* op, const char* name, ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Char:
      return f(int8_t{});
    case ScalarType::Byte:
      return f(uint8_t{});
    case ScalarType::Short:
      return f(int16_t{});
    default:
      break;
  }
  PYQUANT_CHECK(false, op, ": ", name, " is ", dtype_text(type), "; expected int8, uint8 or int16");
  throw std::logic_error("unreachable");
}

template <class T>
const T* in(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* out(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace pyquant::torch_ops
