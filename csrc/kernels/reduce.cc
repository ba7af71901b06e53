// SPDX-License-Identifier: Apache-2.0
// Reductions: the outer axes by counting, the last dimension as runs (one result) or as columns (many).
#include "kernels/reduce.h"

#include <algorithm>

#include "kernels/accumulate.h"
#include "kernels/lanes.h"
#include "kernels/simd.h"

namespace pyquant::kernels {
namespace {

/// Sums and extremes of one type: how a value joins them.
template <class T>
struct Adding {
  using Value = Sum<T>;
  static Value start() { return Value{0}; }
  PYQUANT_INLINE static Value join(Value a, T x) { return a + static_cast<Value>(x); }
  static T finish(const Reduce& plan, Value sum) {
    return finish_sum<T>(sum, plan.map.reduced_n, plan.kind == Reduction::mean, plan.in, plan.out);
  }
};

template <class T>
struct Largest {
  using Value = T;
  static Value start() {
    if constexpr (std::is_same_v<T, float>) return -std::numeric_limits<float>::infinity();
    return std::numeric_limits<T>::lowest();
  }
  PYQUANT_INLINE static Value join(Value a, T x) { return x > a || x != x ? x : a; }
};
template <class T>
struct Smallest {
  using Value = T;
  static Value start() {
    if constexpr (std::is_same_v<T, float>) return std::numeric_limits<float>::infinity();
    return std::numeric_limits<T>::max();
  }
  PYQUANT_INLINE static Value join(Value a, T x) { return x < a || x != x ? x : a; }
};

/// An extreme is a value; on another grid it is rounded to that.
template <class T, class Of>
struct Extreme : Of {
  static T finish(const Reduce& plan, T value) {
    if constexpr (kQuantized<T>) {
      return static_cast<T>(round_sum(value - plan.in.zero_point, plan.in.scale, 1.0, plan.out));
    } else {
      return value;
    }
  }
};

template <class T, class How>
struct JoinRun {
  using Value = typename How::Value;
  static Value scalar(const T* x, int64_t n, Value a) {
    for (int64_t i = 0; i < n; ++i) a = How::join(a, x[i]);
    return a;
  }
  PYQUANT_INLINE static Value vector(const T* x, int64_t n, Value a) {
    for (int64_t i = 0; i < n; ++i) a = How::join(a, x[i]);
    return a;
  }
};

template <class T, class How>
struct JoinColumns {
  using Value = typename How::Value;
  static void scalar(const T* x, int64_t n, Value* a) {
    for (int64_t i = 0; i < n; ++i) a[i] = How::join(a[i], x[i]);
  }
  PYQUANT_INLINE static void vector(const T* __restrict x, int64_t n, Value* __restrict a) {
    for (int64_t i = 0; i < n; ++i) a[i] = How::join(a[i], x[i]);
  }
};

/// Calls use(offset) for every combination of the outer reduced dimensions, in order.
template <class Use>
void each_reduced(const ReduceMap& map, int64_t base, Use use) {
  int64_t index[ReduceMap::kMost] = {};
  for (int d = 0; d < map.reduced; ++d) {
    if (map.reduced_dims[d] == 0) return;
  }
  for (;;) {
    use(base);
    int d = map.reduced - 1;
    for (; d >= 0; --d) {
      base += map.reduced_strides[d];
      if (++index[d] < map.reduced_dims[d]) break;
      base -= map.reduced_dims[d] * map.reduced_strides[d];
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

int64_t kept_offset(const ReduceMap& map, int64_t number) {
  int64_t offset = 0;
  for (int d = map.kept - 1; d >= 0; --d) {
    offset += number % map.kept_dims[d] * map.kept_strides[d];
    number /= map.kept_dims[d];
  }
  return offset;
}

template <class T, class How>
void reduce_runs(const Reduce& plan, const T* x, T* y, int64_t begin, int64_t end) {
  const ReduceMap& map = plan.map;
  for (int64_t u = begin; u < end; ++u) {
    typename How::Value value = How::start();
    each_reduced(map, kept_offset(map, u), [&](int64_t at) {
      if constexpr (std::is_same_v<typename How::Value, double>) {
        Lanes lanes;
        add_to_lanes(x + at, map.inner, &lanes);
        value += lanes.total();
      } else {
        value = dispatch<JoinRun<T, How>>(x + at, map.inner, value);
      }
    });
    y[u] = How::finish(plan, value);
  }
}

template <class T, class How>
void reduce_columns(const Reduce& plan, const T* x, T* y, int64_t begin, int64_t end) {
  const ReduceMap& map = plan.map;
  typename How::Value values[ReduceMap::kColumns];
  for (int64_t u = begin; u < end; ++u) {
    const int64_t outer = u / map.columns(), first = u % map.columns() * ReduceMap::kColumns;
    const int64_t n = std::min(ReduceMap::kColumns, map.inner - first);
    std::fill(values, values + n, How::start());
    each_reduced(map, kept_offset(map, outer) + first, [&](int64_t at) {
      dispatch<JoinColumns<T, How>>(x + at, n, static_cast<typename How::Value*>(values));
    });
    for (int64_t i = 0; i < n; ++i) y[outer * map.inner + first + i] = How::finish(plan, values[i]);
  }
}

template <class T, class How>
void reduce_how(const Reduce& plan, const T* x, T* y, int64_t begin, int64_t end) {
  if (plan.map.last_reduced) return reduce_runs<T, How>(plan, x, y, begin, end);
  reduce_columns<T, How>(plan, x, y, begin, end);
}

}  // namespace

void ReduceMap::make(const int32_t* shape, int rank, const bool* is_reduced, ReduceMap* out) {
  *out = ReduceMap();
  int64_t sizes[kMost];
  bool kinds[kMost];
  int n = 0;
  int64_t results = 1;
  for (int d = 0; d < rank; ++d) {
    if (is_reduced[d]) out->reduced_n *= shape[d];
    if (!is_reduced[d]) results *= shape[d];
  }
  if (out->reduced_n == 0 || results == 0) {  // results of nothing, however many dimensions of 0 there are
    out->reduced = 1;
    out->inner = results;
    out->reduced_n = 0;
    return;
  }
  for (int d = 0; d < rank; ++d) {
    if (shape[d] == 1) continue;
    if (n > 0 && kinds[n - 1] == is_reduced[d]) {
      sizes[n - 1] *= shape[d];
    } else {
      sizes[n] = shape[d];
      kinds[n++] = is_reduced[d];
    }
  }
  if (n == 0) return;
  out->last_reduced = kinds[n - 1];
  out->inner = sizes[n - 1];
  int64_t stride = out->inner;
  for (int d = n - 2; d >= 0; --d) {  // innermost first, turned around below
    if (kinds[d]) {
      out->reduced_dims[out->reduced] = sizes[d];
      out->reduced_strides[out->reduced++] = stride;
    } else {
      out->kept_dims[out->kept] = sizes[d];
      out->kept_strides[out->kept++] = stride;
      out->outer *= sizes[d];
    }
    stride *= sizes[d];
  }
  std::reverse(out->kept_dims, out->kept_dims + out->kept);
  std::reverse(out->kept_strides, out->kept_strides + out->kept);
  std::reverse(out->reduced_dims, out->reduced_dims + out->reduced);
  std::reverse(out->reduced_strides, out->reduced_strides + out->reduced);
}

template <class T>
void reduce(const Reduce& plan, const T* x, T* y, int64_t begin, int64_t end) {
  switch (plan.kind) {
    case Reduction::sum:
    case Reduction::mean:
      return reduce_how<T, Adding<T>>(plan, x, y, begin, end);
    case Reduction::max:
      return reduce_how<T, Extreme<T, Largest<T>>>(plan, x, y, begin, end);
    case Reduction::min:
      return reduce_how<T, Extreme<T, Smallest<T>>>(plan, x, y, begin, end);
  }
}

template void reduce(const Reduce&, const float*, float*, int64_t, int64_t);
template void reduce(const Reduce&, const int8_t*, int8_t*, int64_t, int64_t);
template void reduce(const Reduce&, const uint8_t*, uint8_t*, int64_t, int64_t);
template void reduce(const Reduce&, const int16_t*, int16_t*, int64_t, int64_t);
template void reduce(const Reduce&, const int32_t*, int32_t*, int64_t, int64_t);
template void reduce(const Reduce&, const int64_t*, int64_t*, int64_t, int64_t);

}  // namespace pyquant::kernels
