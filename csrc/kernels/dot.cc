// SPDX-License-Identifier: Apache-2.0
// The loops around the parts of a matrix product: which parts, in which blocks, and that no sum leaves what
// holds it.
#include "kernels/dot.h"

#include <algorithm>
#include <limits>

#include "kernels/dot_parts.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

constexpr int64_t kIntegerBlock = 512;
constexpr int64_t kVector = 32;
constexpr int64_t kGroup = 64;

struct Ends {
  int64_t least;
  int64_t most;
};

Ends ends_of(Elements e) {
  switch (e) {
    case Elements::int4:
      return {-8, 7};
    case Elements::uint4:
      return {0, 15};
    case Elements::int8:
      return {-128, 127};
    case Elements::uint8:
      return {0, 255};
    default:
      return {-32768, 32767};
  }
}

/// The magnitude of an element minus zero.
int64_t largest(Elements e, int64_t zero) {
  const Ends ends = ends_of(e);
  return std::max(zero - ends.least, ends.most - zero);
}

bool plan_integers(const Linear& p, LinearPlan* plan) {
  if (!is_grid(p.w.type) || p.y.type < Elements::int8 || p.y.type > Elements::int16) return false;
  // The sum and the correction for the zero points of w are exact in double.
  int64_t x_most = largest(p.x.type, p.x_zero);
  const int64_t w_most = std::max(-ends_of(p.w.type).least, ends_of(p.w.type).most);
  if (p.depth > (int64_t{1} << 53) / (2 * x_most * std::max<int64_t>(w_most, 256))) return false;

  // x - x_zero in 16 bits, whose highest is 32767.
  plan->x_parts = x_most > 32768 || ends_of(p.x.type).most - p.x_zero > 32767 ? 2 : 1;
  plan->x_offset = plan->x_parts == 2 ? static_cast<int32_t>(p.x_zero) : 0;
  if (plan->x_parts == 2) x_most = 32768;
  const bool whole_bytes =
      p.w.column_step == 1 && (!is_four_bit(p.w.type) || (p.w.row_step % 2 == 0 && p.w.first % 2 == 0));
  plan->per_word = !whole_bytes || p.w.type == Elements::int16 ? 1 : is_four_bit(p.w.type) ? 4 : 2;
  plan->direct = p.rows <= kFewRows && plan->per_word > 1 && plan->x_parts == 1;
  plan->padded = up_to(p.depth, plan->per_word == 4 ? kGroup : kVector);
  // 16-bit weights are unpacked as two addends of 8 bits, the low one without a sign.
  const int64_t product = x_most * std::min<int64_t>(w_most, 255);
  const int64_t fits = std::numeric_limits<int32_t>::max() / product;
  plan->lane_steps = fits;
  const int64_t room = p.w.type == Elements::int16 ? kIntegerBlock / 2 : kIntegerBlock;
  plan->block = std::min(room, fits / kGroup * kGroup);
  return true;
}

bool plan_floats(const Linear& p, LinearPlan* plan) {
  if (p.y.type < Elements::float32 || p.y.type > Elements::bfloat16) return false;
  const bool blocks = p.w.type == Elements::q4_0 || p.w.type == Elements::q8_0;
  if (blocks && (p.w.column_step != 1 || (p.w.first | p.w.row_step | p.depth) % kBlockLength != 0))
    return false;
  plan->padded = up_to(p.depth, kVector);
  plan->per_word = 1;
  plan->block = kFloatBlock;
  return true;
}

/// Of one thread, on its stack. 16-bit weights come in blocks of half the depth and two parts.
struct Scratch {
  alignas(64) double sums[kUnitRows * kUnitColumns];
  union {
    alignas(64) int16_t panel[kUnitColumns * kIntegerBlock];
    alignas(64) float floats[kUnitColumns * kFloatBlock];
  };
};

/// Weights of a block of depth were unpacked once and stay near while all rows pass.
template <class Tile, class T>
void add_tiles(Tile (*choose)(int64_t), const T* x, int64_t x_step, const T* w, int64_t w_step, int64_t count,
               int64_t rows, int64_t columns, double factor, double* sums) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const Tile tile = choose(std::min(kTileRows, rows - i));
    for (int64_t j = 0; j < columns; j += kTileColumns) {
      tile(x + i * x_step, x_step, w + j * w_step, w_step, count, factor, sums + i * kUnitColumns + j);
    }
  }
}

struct Unit {
  int64_t row, rows, column, columns;
};

void integer_unit(const Linear& p, const LinearPlan& plan, const Prepared& from, const Unit& u, Scratch& s) {
  std::fill_n(s.sums, u.rows * kUnitColumns, 0.0);
  if (plan.direct && has_direct_sums() && p.depth > 0) {
    direct_sums(p, plan, from.integers, u.column, u.columns, s.sums);
  } else {
    const int64_t step = plan.x_parts * plan.padded;
    int16_t* const low = p.w.type == Elements::int16 ? s.panel + kUnitColumns * plan.block : nullptr;
    for (int64_t k = 0; k < p.depth; k += plan.block) {
      const int64_t count = std::min(plan.block, p.depth - k), padded = std::min(plan.block, plan.padded - k);
      unpack_rows(p, plan, u.column, u.columns, k, count, padded, s.panel, low);
      for (int part = 0; part < plan.x_parts; ++part) {
        const int16_t* x = from.integers + u.row * step + part * plan.padded + k;
        const double factor = part == 0 ? 1.0 : static_cast<double>(-plan.x_offset);
        const double high = low ? 256.0 * factor : factor;
        add_tiles(integer_tile, x, step, s.panel, padded, padded, u.rows, u.columns, high, s.sums);
        if (low) add_tiles(integer_tile, x, step, low, padded, padded, u.rows, u.columns, factor, s.sums);
      }
    }
  }
  finish_integers(p, u.row, u.rows, u.column, u.columns, s.sums, from.sums + u.row);
}

/// Whether tiles may read a block of float32 weights where it is: few rows use it once, and no tile passes
/// its end.
bool read_in_place(const Linear& p, const Unit& u, int64_t count, int64_t padded) {
  return p.w.type == Elements::float32 && p.w.column_step == 1 && p.rows <= kFewRows && count == padded &&
         u.columns % kTileColumns == 0;
}

void float_unit(const Linear& p, const LinearPlan& plan, const Prepared& from, const Unit& u, Scratch& s) {
  std::fill_n(s.sums, u.rows * kUnitColumns, 0.0);
  for (int64_t k = 0; k < p.depth; k += plan.block) {
    const int64_t count = std::min(plan.block, p.depth - k), padded = std::min(plan.block, plan.padded - k);
    const float *x = from.floats + u.row * plan.padded + k, *w = s.floats;
    int64_t w_step = padded;
    if (read_in_place(p, u, count, padded)) {
      w = static_cast<const float*>(p.w.data) + p.w.first + u.column * p.w.row_step + k;
      w_step = p.w.row_step;
    } else {
      unpack_rows(p, u.column, u.columns, k, count, padded, s.floats);
    }
    add_tiles(float_tile, x, plan.padded, w, w_step, padded, u.rows, u.columns, 1.0, s.sums);
  }
  finish_floats(p, u.row, u.rows, u.column, u.columns, s.sums);
}

}  // namespace

bool plan_linear(const Linear& p, LinearPlan* plan) {
  *plan = LinearPlan{};
  plan->integers = is_grid(p.x.type);
  plan->x_parts = 1;
  if (!(plan->integers ? plan_integers(p, plan) : plan_floats(p, plan))) return false;
  plan->units = (p.columns + kUnitColumns - 1) / kUnitColumns * ((p.rows + kUnitRows - 1) / kUnitRows);
  plan->prepared_bytes =
      up_to(p.rows * 8, 64) + p.rows * plan->x_parts * plan->padded * (plan->integers ? 2 : 4);
  return true;
}

void run_units(const Linear& p, const LinearPlan& plan, const void* prepared, int64_t begin, int64_t end) {
  const Prepared from = prepared_at(p, plan, const_cast<void*>(prepared));
  Scratch scratch;
  const int64_t across = (p.columns + kUnitColumns - 1) / kUnitColumns;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t row = unit / across * kUnitRows, column = unit % across * kUnitColumns;
    const Unit u{row, std::min(kUnitRows, p.rows - row), column, std::min(kUnitColumns, p.columns - column)};
    plan.integers ? integer_unit(p, plan, from, u, scratch) : float_unit(p, plan, from, u, scratch);
  }
}

}  // namespace pyquant::kernels
