// SPDX-License-Identifier: Apache-2.0
// gram_accumulate_: the second moments of a linear's inputs, added up over batches.
#include <algorithm>

#include "torch/common.h"

namespace pyquant::torch_ops {
namespace {

/// Rows that are packed at once, which bounds the memory beside gram and x; a multiple of kGramRows.
constexpr int64_t kSpan = 2 * kernels::kGramRows;

/// Calls f(a, b) for the pairs of panels a <= b that have the numbers [begin, end), row after row.
template <class F>
void each_pair(int64_t panels, int64_t begin, int64_t end, const F& f) {
  int64_t a = 0, row = 0;  // row: the number of the pair (a, a)
  while (begin >= row + panels - a) row += panels - a++;
  for (int64_t b = a + begin - row; begin < end; ++begin) {
    f(a, b);
    if (++b == panels) b = ++a;
  }
}

void gram_accumulate_(const Tensor& gram, const Tensor& x_) {
  const char* op = "gram_accumulate_";
  check_cpu(op, "x", x_);
  PYQUANT_CHECK(x_.dim() >= 1, op, ": x has shape ", shape_text(x_), "; expected (..., columns)");
  const int64_t columns = x_.size(x_.dim() - 1);
  check_dtype(op, "gram", gram, ScalarType::Float);
  PYQUANT_CHECK(gram.dim() == 2 && gram.size(0) == columns && gram.size(1) == columns, op,
                ": gram has shape ", shape_text(gram), "; x of shape ", shape_text(x_), " needs (", columns,
                ", ", columns, ")");
  check_state(op, "gram", gram, ScalarType::Float, columns * columns);
  const Tensor x = dense(x_);
  with_float(op, x, [&](auto type) {
    using T = decltype(type);
    if (x.numel() == 0) return 0;
    const int64_t rows = x.numel() / columns, panels = kernels::panels_of(columns);
    const int64_t step = std::min(rows, kSpan) * kernels::kPanel;
    const Tensor packed_tensor = torch::stable::new_empty(x, {panels * step}, ScalarType::Float);
    float *packed = out<float>(packed_tensor), *sums = out<float>(gram);
    for (int64_t at = 0; at < rows; at += kSpan) {
      const int64_t count = std::min(kSpan, rows - at);
      const T* from = in<T>(x) + at * columns;
      parallel(panels, std::max<int64_t>(1, kGrain / step), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) kernels::pack_panel(from, count, columns, p, packed + p * step);
      });
      const bool last = at + count == rows;
      parallel(panels * (panels + 1) / 2, std::max<int64_t>(1, kGrain / step),
               [&](int64_t begin, int64_t end) {
                 each_pair(panels, begin, end, [&](int64_t a, int64_t b) {
                   kernels::gram_add(packed + a * step, a, packed + b * step, b, count, columns, sums, last);
                 });
               });
    }
    return 0;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyquant, m) { m.def("gram_accumulate_(Tensor(a!) gram, Tensor x) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(pyquant, CPU, m) { m.impl("gram_accumulate_", TORCH_BOX(&gram_accumulate_)); }

}  // namespace pyquant::torch_ops
