// SPDX-License-Identifier: Apache-2.0
// The loops over arrays: observe, fake-quantize, quantize, pack. Plain pointers and counts; no torch, no
// exceptions, no allocation. Splitting work among threads is left to the caller: each kernel gets the
// part that it processes.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "pyquant/qparams.h"

namespace pyquant::kernels {

/// Which version of a kernel runs. `scalar` is the definition, the others equal it bit for bit.
enum class Isa : int { scalar = 0, portable = 1, avx2 = 2, avx512 = 3 };

/// The best that this CPU has, chosen once.
Isa best_isa();
/// The one in use: best_isa() unless set_isa() chose another.
Isa active_isa();
/// For tests and benchmarks. False, and nothing changes, where the CPU lacks it.
bool set_isa(Isa isa);
const char* isa_name(Isa isa);

/// 16-bit floats as they are in memory.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

/// Where an element's scale is. A contiguous tensor is seen as dims[0] x dims[1] x dims[2]; element (i, j, k)
/// uses scale number i * strides[0] + j * strides[1] + k * strides[2]. strides[2] is 0 or 1.
struct ScaleMap {
  int64_t dims[3];
  int64_t strides[3];

  int64_t numel() const { return dims[0] * dims[1] * dims[2]; }
  static ScaleMap per_tensor(int64_t numel);
  /// x is [outer, channels, inner]; the scale is [channels].
  static ScaleMap per_channel(int64_t outer, int64_t channels, int64_t inner);
  /// x is [outer, groups * group, inner]; the scale is [outer, groups, inner].
  static ScaleMap per_group(int64_t outer, int64_t groups, int64_t group, int64_t inner);
};

/// A part of dims[0] x dims[1] x dims[2]: [begin, end) in each.
struct Box {
  int64_t begin[3];
  int64_t end[3];
};
/// The dimension that threads may split without sharing a scale, or -1 if all elements share one (then split
/// dims[2]).
int independent_dim(const ScaleMap& map);

// --- pointwise: elements [begin, end) of x. T: float, BFloat16, Float16 (computed in float32, stored to
// nearest even).

/// y = dequantize(quantize(x)).
template <class T>
void fake_quantize(const T* x, T* y, const ScaleMap& map, const float* scale, const int32_t* zero_point,
                   Grid grid, int64_t begin, int64_t end);
/// dx = dy where x is representable, else 0.
template <class T>
void fake_quantize_backward(const T* dy, const T* x, T* dx, const ScaleMap& map, const float* scale,
                            const int32_t* zero_point, Grid grid, int64_t begin, int64_t end);
/// Q: int8_t, uint8_t, int16_t; the grid must fit it.
template <class T, class Q>
void quantize(const T* x, Q* q, const ScaleMap& map, const float* scale, const int32_t* zero_point, Grid grid,
              int64_t begin, int64_t end);
template <class Q>
void dequantize(const Q* q, float* x, const ScaleMap& map, const float* scale, const int32_t* zero_point,
                int64_t begin, int64_t end);

// --- reductions

/// Widens lo[s], hi[s] (one per scale) to the finite values of the box; returns how many values were not
/// finite. -0 counts as +0. Start at lo = +inf, hi = -inf.
template <class T>
int64_t minmax(const T* x, const ScaleMap& map, const Box& box, float* lo, float* hi);

/// Of the finite values: how many, their mean, the sum of squared differences from it, the extent (-0 counts
/// as +0).
struct Stats {
  double count = 0;
  double mean = 0;
  double squares = 0;
  float lo = std::numeric_limits<float>::infinity();
  float hi = -std::numeric_limits<float>::infinity();
};
/// Threads process whole chunks; chunks are merged in pairs, so that the result does not depend on threads.
constexpr int64_t kStatsChunk = 65536;
/// n <= kStatsChunk.
template <class T>
Stats chunk_stats(const T* x, int64_t n);
/// The statistics of both together (Chan, Golub and LeVeque 1979).
Stats merge(const Stats& a, const Stats& b);
/// merge() of neighbours, then of the results, until one is left; overwrites `parts`.
Stats merge_pairs(Stats* parts, int64_t n);

// --- histogram: bins of width 2^exponent at multiples of it, so that bins merge exactly in pairs. Where the
// bins are depends only on the extent of all data: the counts are the same in whatever order, batches and
// shards the data came.

constexpr int64_t kMaxBins = 1 << 20;
/// Values beyond it count as it.
constexpr float kHistogramLimit = 0x1p120f;
/// The exponent of the bins of data that is all zero: no grid has so small a range.
constexpr int kHistogramExponent = -126;

/// Bin b holds [(first + b) * 2^exponent, (first + b + 1) * 2^exponent).
struct Bins {
  int exponent;
  int64_t first;

  float edge(int64_t b) const { return std::ldexp(static_cast<float>(first + b), exponent); }
};
/// The bins whose first and last edge are range[0], range[1]; false where range is not one (nothing seen
/// yet).
bool bins_of(const float* range, int64_t bins, Bins* out);
/// Widens [lo, hi] by a value of the first and one of the last bin that is not empty.
void widen_by_counts(const int64_t* counts, const Bins& where, int64_t bins, double* lo, double* hi);
/// The narrowest bins, of width 2^least at least, that hold 0, lo and hi. kHistogramExponent is the least of
/// all.
Bins bins_for(double lo, double hi, int least, int64_t bins);
/// Adds the counts of one histogram to another that holds it.
void add_counts(const int64_t* from, const Bins& from_bins, int64_t bins, int64_t* to, const Bins& to_bins);
/// Adds x to `tables` counters (1 or 4 of them, of bins + 1 each; the last takes what is not finite). n <
/// 2^32.
template <class T>
void count_values(const T* x, int64_t n, const Bins& where, int64_t bins, uint32_t* counters, int tables);

struct Range {
  float lo;
  float hi;
};
/// Where `lower` and `upper` percent of the counts lie, linear within a bin. NaN when all counts are 0.
Range percentile_range(const int64_t* counts, const Bins& where, int64_t bins, double lower, double upper);
/// The range whose grid has the least square error over the middles of the bins: hundredths of the occupied
/// range and then thousandths around the best, for both ends together, then (asymmetric) hi alone, then lo
/// alone; the first of equals, widest first. NaN when all counts are 0.
Range least_error_range(const int64_t* counts, const Bins& where, int64_t bins, Grid grid, bool symmetric);

// --- search of a range over the values themselves, for weights.

/// A candidate is the full range times (100 - c) / 100, c = 0 .. kCandidates - 1.
constexpr int kCandidates = 80;
/// Elements whose errors are summed before they are added to the sums of others, so that the sum does not
/// depend on threads.
constexpr int64_t kErrorChunk = 65536;
Range candidate_range(float lo, float hi, int candidate);
/// errors[c] = sum of squared errors of candidate c over x. n <= kErrorChunk.
template <class T>
void candidate_errors(const T* x, int64_t n, float lo, float hi, Grid grid, bool symmetric, double* errors);
/// The same of importance[i] * square error i.
template <class T>
void candidate_errors(const T* x, const float* importance, int64_t n, float lo, float hi, Grid grid,
                      bool symmetric, double* errors);

// --- matrix products, for weights that are chosen by the second moments of their inputs. Every element is a
// chain of fused multiply-adds in the order that is said here, whatever the blocks, threads and instruction
// set. A panel is kPanel neighbouring columns (or rows), side by side in memory: element (n, l) at
// [n * kPanel + l], zeros past the end.

constexpr int64_t kPanel = 24;
constexpr int64_t panels_of(int64_t n) { return (n + kPanel - 1) / kPanel; }

/// Rows that a Gram matrix sums before it adds the sum to what it has.
constexpr int64_t kGramRows = 256;
/// Panel number `panel` of x, [rows, columns], in float32: rows * kPanel values.
template <class T>
void pack_panel(const T* x, int64_t rows, int64_t columns, int64_t panel, float* packed);
/// gram[i][j] += sum over n of a[n][i] * b[n][j], for i of panel number `a_panel` and j of `b_panel` with
/// a_panel <= b_panel and i <= j: kGramRows rows at a time, from 0, row after row. gram is [columns,
/// columns]. With `mirror`, gram[j][i] becomes gram[i][j].
void gram_add(const float* a, int64_t a_panel, const float* b, int64_t b_panel, int64_t rows, int64_t columns,
              float* gram, bool mirror);

/// Each of `lines` lines of n doubles becomes its product with a Hadamard matrix: `core`, [order, order],
/// doubled (n = order * 2^d) by [[H, H], [H, -H]]. `scratch` holds `order` doubles.
void hadamard(double* x, int64_t lines, int64_t n, const double* core, int64_t order, double* scratch);

/// Integers of a weight, column by column; what a column loses is moved to the columns after it (GPTQ,
/// Frantar et al. 2022, arXiv 2210.17323). For j = 0, 1, ...: q = quantize(w[j]); e = (w[j] - dequantize(q))
/// / factor[j][j]; w[k] = fma(-e, factor[j][k], w[k]) for all k > j. The factor is [columns, columns]; below
/// its diagonal it is not read. Row r has the scales [r * scale_step + j / group]. `loss` is the sum of e *
/// e, in double.
struct Gptq {
  int64_t rows, columns;
  const float* factor;
  const float* scale;
  const int32_t* zero_point;
  int64_t scale_step, group;
  Grid grid;
  int32_t* integers;  // [rows, columns]
  double* loss;       // [rows], starts at 0
};
/// Columns that are solved before the others hear of their errors.
constexpr int64_t kGptqBlock = 128;
/// Columns of a strip of the packed factor.
constexpr int64_t kStrip = 4;
constexpr int64_t strips_of(int64_t n) { return (n + kStrip - 1) / kStrip; }
/// Panel number `panel` of the rows of w, [rows, columns]: strips_of(columns) * kStrip * kPanel values.
void gptq_pack_rows(const float* w, int64_t rows, int64_t columns, int64_t panel, float* packed);
/// Strips [begin, end) of the factor's rows of the block that starts at column `first`: kGptqBlock * kStrip
/// values each, strip 0 at packed[0].
void gptq_pack_factor(const Gptq& problem, int64_t first, int64_t begin, int64_t end, float* packed);
/// Solves the block of one panel of rows and moves its errors to the columns after it. factor: all strips
/// from first / kStrip on, packed. errors: kGptqBlock * kPanel values, of any content.
void gptq_solve_block(const Gptq& problem, int64_t first, int64_t panel, const float* factor, float* packed,
                      float* errors);

// --- two 4-bit integers in a byte: element 2i in the low half, 2i + 1 in the high half, 0 after an odd end.

/// packed: (n + 1) / 2 bytes. Returns false when a value needs more than 4 bits (the low 4 are packed all the
/// same).
template <class Q>
bool pack_int4(const Q* q, int64_t n, uint8_t* packed);
/// Q = int8_t extends the sign. `q` starts at an even element.
template <class Q>
void unpack_int4(const uint8_t* packed, int64_t n, Q* q);

// --- ggml's blocks: 32 consecutive values, and a scale of their own in half precision before them. bits 4 is
// Q4_0 (elements i and i + 16 in the low and high half of byte i), bits 8 is Q8_0.

constexpr int64_t kBlockLength = 32;
constexpr int64_t block_bytes(int64_t bits) { return 2 + kBlockLength * bits / 8; }

/// packed: blocks * block_bytes(bits) bytes. Returns false when a block has no finite scale: it holds NaN or
/// Inf, or a value too large for half precision.
template <class T>
bool quantize_blocks(const T* x, int64_t blocks, int bits, uint8_t* packed);
void dequantize_blocks(const uint8_t* packed, int64_t blocks, int bits, float* x);
/// y = dequantize_blocks(quantize_blocks(x)), in x's type.
template <class T>
bool fake_quantize_blocks(const T* x, int64_t blocks, int bits, T* y);

}  // namespace pyquant::kernels
