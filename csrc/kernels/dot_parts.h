// SPDX-License-Identifier: Apache-2.0
// The parts of a matrix product (dot.h), each in a file of its own: rows of x laid out, rows of w unpacked, a
// tile of sums, sums of few rows straight from packed weights, sums to outputs. Private to csrc/kernels.
#pragma once

#include <cstdint>

#include "kernels/dot.h"
#include "kernels/simd.h"

#ifdef PYQUANT_X86
#include <immintrin.h>
#endif

namespace pyquant::kernels {

#ifdef PYQUANT_X86
#define PYQUANT_AVX2_INLINE __attribute__((always_inline, target(PYQUANT_AVX2_FEATURES))) inline

/// sum += product in 32-bit lanes, in the order that is written: where the compiler may choose the order of
/// such additions, it keeps more products alive than there are registers, and the sums move to memory.
PYQUANT_AVX2_INLINE void add_words(__m256i& sum, __m256i product) {
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}
#endif

inline int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Element `i` of a tensor of 4-bit integers.
template <bool kSigned>
PYQUANT_INLINE int32_t nibble_at(const uint8_t* data, int64_t i) {
  const int32_t nibble = (data[i >> 1] >> ((i & 1) * 4)) & 15;
  return kSigned ? (nibble ^ 8) - 8 : nibble;
}

/// Where element k of a row of x lies. 16-bit words of packed weights hold 4, 2 or 1 neighbours, and a shift
/// gives one of each of 16 words: of every 16 * per_word elements come first those with k % per_word = 0,
/// then 1, ...
PYQUANT_INLINE int64_t place_of(int64_t k, int64_t per_word) {
  const int64_t in_group = k % (16 * per_word);
  return k - in_group + in_group % per_word * 16 + in_group / per_word;
}

/// What prepare_rows() made: the sums of x - x_zero of each row, then the rows, `padded` elements and x_parts
/// each.
struct Prepared {
  double* sums;  // of integers
  int16_t* integers;
  float* floats;
};
Prepared prepared_at(const Linear& problem, const LinearPlan& plan, void* prepared);

/// Elements [begin, begin + count) of row m of x, x_zero subtracted; pieces in order, each but the last
/// kPiece long.
constexpr int64_t kPiece = 1024;
void put_piece(const LinearPlan& plan, const int32_t* piece, int64_t begin, int64_t count, int64_t m,
               const Prepared& to);
void put_piece(const LinearPlan& plan, const float* piece, int64_t begin, int64_t count, int64_t m,
               const Prepared& to);
/// What is past the end of row m, and where a row without elements starts: zeros.
void clear_row(const Linear& problem, const LinearPlan& plan, int64_t m, const Prepared& to);
/// `count` elements of a matrix from number `first` on, `step` apart, minus `zero`; as float where they are.
void load_elements(Elements type, const void* data, int64_t first, int64_t step, int64_t count, int32_t zero,
                   int32_t* to);
void load_elements(Elements type, const void* data, int64_t first, int64_t step, int64_t count, float* to);

/// Rows [first, first + rows) of w, elements [begin, begin + count) of each, to panel[row * padded]; `padded`
/// is count up to whole vectors, and what is past the ends is 0, up to kUnitColumns rows. 16-bit elements
/// have two addends, which fit 9 bits: 256 * high + low; `low` is null for others.
void unpack_rows(const Linear& problem, const LinearPlan& plan, int64_t first, int64_t rows, int64_t begin,
                 int64_t count, int64_t padded, int16_t* panel, int16_t* low);
/// The same in float32, dequantized.
void unpack_rows(const Linear& problem, int64_t first, int64_t rows, int64_t begin, int64_t count,
                 int64_t padded, float* panel);

/// The same of w whose row_step is 1: 8-bit and 16-bit integers, float32. What is past the ends is left as it
/// is.
void transpose_rows(const Matrix& w, int64_t first, int64_t rows, int64_t begin, int64_t count,
                    int64_t padded, int16_t* panel);
void transpose_rows(const Matrix& w, int64_t first, int64_t rows, int64_t begin, int64_t count,
                    int64_t padded, float* panel);

/// sums[i * kUnitColumns + j] += factor * (sum over k < count of x[i * x_step + k] * w[j * w_step + k]), i <
/// rows (1 to kTileRows), j < kTileColumns. count is a multiple of 16. Integers: every sum fits 32 bits.
constexpr int64_t kTileRows = 3;
constexpr int64_t kTileColumns = 4;
using IntegerTile = void (*)(const int16_t* x, int64_t x_step, const int16_t* w, int64_t w_step,
                             int64_t count, double factor, double* sums);
using FloatTile = void (*)(const float* x, int64_t x_step, const float* w, int64_t w_step, int64_t count,
                           double factor, double* sums);
/// For the instruction set in use; number `rows`.
IntegerTile integer_tile(int64_t rows);
FloatTile float_tile(int64_t rows);

/// Whether direct_sums() exists for the instruction set in use.
bool has_direct_sums();
/// sums[m * kUnitColumns + j] = sum of x[m][k] * w[first + j][k], straight from packed weights; rows of x <=
/// kFewRows.
void direct_sums(const Linear& problem, const LinearPlan& plan, const int16_t* x, int64_t first,
                 int64_t columns, double* sums);

/// Sums of rows [row, row + rows) and columns [first, first + columns) to outputs. x_sums: of these rows.
void finish_integers(const Linear& problem, int64_t row, int64_t rows, int64_t first, int64_t columns,
                     const double* sums, const double* x_sums);
void finish_floats(const Linear& problem, int64_t row, int64_t rows, int64_t first, int64_t columns,
                   const double* sums);

}  // namespace pyquant::kernels
