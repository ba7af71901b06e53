// SPDX-License-Identifier: Apache-2.0
// Matrix products over the rows of a weight as it lies in a file: y = x * w^T + bias, in integers or in
// float32. Private to csrc. Which operator asks is left to csrc/circle/ops.
//
// In integers: sum over k of (x[m][k] - x_zero) * (w[n][k] - w_zero[n]), exact, times x_scale * w_scale[n],
// plus the bias times its own scale, over y_scale, rounded once (exact.h). In float32: blocks of kFloatBlock
// products, each summed in 8 chains of fma (chain l takes k = l, l + 8, ...), the chains in pairs of
// neighbours until one is left; the sums of blocks and the bias are added up in double, one after the other,
// and rounded to float32. Neither depends on the instruction set or on how rows and units are split among
// threads.
//
// A product is two loops, for a pool of threads: prepare_rows() over the rows of x, then, when all rows are
// there, run_units() over the units of y.
#pragma once

#include <cstdint>

namespace pyquant::kernels {

enum class Elements : uint8_t {
  int4,
  uint4,
  int8,
  uint8,
  int16,
  float32,
  float16,
  bfloat16,
  q4_0,
  q8_0,
  int32,
  int64
};

constexpr bool is_four_bit(Elements e) { return e == Elements::int4 || e == Elements::uint4; }
/// What dequantizes with a scale and a zero point of its own.
constexpr bool is_grid(Elements e) { return e <= Elements::int16; }

/// Element (row, column) is number first + row * row_step + column * column_step of `data`. Two 4-bit
/// elements are in a byte, the first in the low half. Blocks of ggml lie along a row: column_step is 1,
/// `first` and row_step are multiples of 32.
struct Matrix {
  Elements type;
  const void* data;
  int64_t row_step;
  int64_t column_step = 1;
  int64_t first = 0;
};

/// Scales (and zero points) of the rows of w or of a bias: number n * step.
struct RowScales {
  const float* scale = nullptr;
  const int64_t* zero = nullptr;  // null: all 0
  int64_t step = 0;               // 0: one for all rows; 1: one for each
};

/// Where a sum goes. y[m][n] is number first + m * row_step + n of `data`.
struct Output {
  Elements type;  // int8, uint8, int16 of quantized x; float32, float16, bfloat16 of float x
  void* data;
  int64_t row_step;
  float scale = 1.0f;
  int64_t zero = 0;
  int64_t least = 0;  // integers: the ends of the type, or closer where an activation clamps
  int64_t most = 0;
  float from = 0.0f;  // float: clamps to [from, to]; NaN stays
  float to = 0.0f;
  int64_t first = 0;
  bool tanh = false;  // of the real number, in double, before it is rounded
};

struct Linear {
  int64_t rows;     // of x and y
  int64_t columns;  // of y, rows of w
  int64_t depth;    // columns of x and w
  Matrix x;
  float x_scale = 1.0f;
  int64_t x_zero = 0;
  Matrix w;
  RowScales w_scales;
  const void* bias = nullptr;  // int32 or int64 with scales; float32, float16 or bfloat16 where x is float
  Elements bias_type = Elements::int32;
  RowScales bias_scales;
  Output y;
};

constexpr int64_t kUnitColumns = 24;
constexpr int64_t kUnitRows = 256;
constexpr int64_t kFloatBlock = 256;
/// Rows of x up to which weights are read as they are packed, without a copy in scratch.
constexpr int64_t kFewRows = 4;

/// What a product needs, from its types and sizes alone (data may be null).
struct LinearPlan {
  bool integers;  // x is quantized
  int per_word;   // weights in 16 bits, by which x is laid out: 4, 2 or 1 (place_of in dot_parts.h)
  bool direct;    // few rows: weights are not unpacked
  int x_parts;    // 2 where x - x_zero needs 17 bits: x, and ones times -x_offset
  int32_t x_offset;
  int64_t padded;      // depth, up to whole vectors
  int64_t block;       // of depth, between two sums in double
  int64_t lane_steps;  // products that a 32-bit lane of the direct kernel holds for sure
  int64_t units;
  int64_t prepared_bytes;  // what prepare_rows() fills, for all threads
};

/// False where a sum might not be exact in double (a depth of millions) or the layout is none that is known.
bool plan_linear(const Linear& problem, LinearPlan* plan);
/// Rows [begin, end) of x into `prepared`, which is aligned to 64 bytes.
void prepare_rows(const Linear& problem, const LinearPlan& plan, int64_t begin, int64_t end, void* prepared);
/// Units [begin, end) of plan.units. Uses about 100 KB of stack.
void run_units(const Linear& problem, const LinearPlan& plan, const void* prepared, int64_t begin,
               int64_t end);

}  // namespace pyquant::kernels
