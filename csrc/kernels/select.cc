// SPDX-License-Identifier: Apache-2.0
// One loop over rows, for each width.
#include "kernels/select.h"

#include <algorithm>
#include <cstring>

#include "kernels/move.h"

namespace pyquant::kernels {
namespace {

template <class Cell>
void select_cells(Threads& threads, const Nest<4>& nest, const uint8_t* condition, const uint8_t* a,
                  const uint8_t* b, uint8_t* out) {
  constexpr int64_t kWidth = sizeof(Cell);
  const int64_t columns = nest.columns();
  const Nest<4>::Offsets stride = nest.column_strides();
  const auto rows = [&](int64_t begin, int64_t end, int) {
    nest.for_rows(begin, end, [&](const Nest<4>::Offsets& at) {
      const uint8_t *c = condition + at[0], *x = a + at[1] * kWidth, *z = b + at[2] * kWidth;
      uint8_t* y = out + at[3] * kWidth;
      for (int64_t i = 0; i < columns; ++i) {
        Cell cell, other;
        std::memcpy(&cell, x + i * stride[1] * kWidth, sizeof cell);
        std::memcpy(&other, z + i * stride[2] * kWidth, sizeof other);
        cell = c[i * stride[0]] != 0 ? cell : other;
        std::memcpy(y + i * kWidth, &cell, sizeof cell);
      }
    });
  };
  threads.run(nest.rows(), std::max<int64_t>(16384 / columns, 1), rows);
}

}  // namespace

void select(Threads& threads, const Nest<4>& nest, int bits, const uint8_t* condition,
            const uint8_t* when_true, const uint8_t* when_false, uint8_t* out) {
  if (nest.empty()) return;
  switch (bits) {
    case 4:
      return nest.for_each(0, nest.count(), [&](const Nest<4>::Offsets& at) {
        const bool first = condition[at[0]] != 0;
        set_half(out, at[3], first ? get_half(when_true, at[1]) : get_half(when_false, at[2]));
      });
    case 8:
      return select_cells<uint8_t>(threads, nest, condition, when_true, when_false, out);
    case 16:
      return select_cells<uint16_t>(threads, nest, condition, when_true, when_false, out);
    case 32:
      return select_cells<uint32_t>(threads, nest, condition, when_true, when_false, out);
    default:
      return select_cells<uint64_t>(threads, nest, condition, when_true, when_false, out);
  }
}

}  // namespace pyquant::kernels
