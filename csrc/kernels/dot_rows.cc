// SPDX-License-Identifier: Apache-2.0
// Rows of x as the tiles take them: integers minus the zero point in 16 bits (in two parts where it takes
// 17), laid out as the weights are packed, or float32; zeros up to whole vectors.
#include <algorithm>
#include <cstring>

#include "kernels/convert.h"
#include "kernels/dot_parts.h"
#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

template <class T>
struct LoadIntegers {
  static void scalar(const T* from, int64_t step, int64_t count, int32_t zero, int32_t* to) {
    vector(from, step, count, zero, to);
  }
  PYQUANT_INLINE static void vector(const T* __restrict from, int64_t step, int64_t count, int32_t zero,
                                    int32_t* __restrict to) {
    if (step == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = from[i] - zero;
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = from[i * step] - zero;
    }
  }
};

template <class T>
struct LoadFloats {
  static void scalar(const T* from, int64_t step, int64_t count, float* to) { vector(from, step, count, to); }
  PYQUANT_INLINE static void vector(const T* __restrict from, int64_t step, int64_t count,
                                    float* __restrict to) {
    if (step == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = load(from[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = load(from[i * step]);
    }
  }
};

struct PutIntegers {
  static int64_t scalar(const int32_t* row, int64_t count, int16_t* to) { return vector(row, count, to); }
  PYQUANT_INLINE static int64_t vector(const int32_t* __restrict row, int64_t count, int16_t* __restrict to) {
    int32_t sum = 0;  // kPiece numbers of 17 bits
    for (int64_t k = 0; k < count; ++k) {
      sum += row[k];
      to[k] = static_cast<int16_t>(row[k]);
    }
    return sum;
  }
};

template <int kWord>
struct PutWords {
  static int64_t scalar(const int32_t* row, int64_t depth, int16_t* to) { return vector(row, depth, to); }
  PYQUANT_INLINE static int64_t vector(const int32_t* __restrict row, int64_t depth, int16_t* __restrict to) {
    int64_t sum = 0, k = 0;
    for (; k + 16 * kWord <= depth; k += 16 * kWord) {
      int32_t part = 0;
      for (int j = 0; j < kWord; ++j) {
        for (int i = 0; i < 16; ++i) {
          const int32_t v = row[k + kWord * i + j];
          part += v;
          to[k + 16 * j + i] = static_cast<int16_t>(v);
        }
      }
      sum += part;
    }
    for (; k < depth; ++k) {
      sum += row[k];
      to[place_of(k, kWord)] = static_cast<int16_t>(row[k]);
    }
    return sum;
  }
};

int64_t put_words(int per_word, const int32_t* row, int64_t depth, int16_t* to) {
  switch (per_word) {
    case 4:
      return dispatch<PutWords<4>>(row, depth, to);
    case 2:
      return dispatch<PutWords<2>>(row, depth, to);
    default:
      return dispatch<PutIntegers>(row, depth, to);
  }
}

}  // namespace

void load_elements(Elements type, const void* data, int64_t first, int64_t step, int64_t count, int32_t zero,
                   int32_t* to) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  switch (type) {
    case Elements::int4:
      for (int64_t i = 0; i < count; ++i) to[i] = nibble_at<true>(bytes, first + i * step) - zero;
      return;
    case Elements::uint4:
      for (int64_t i = 0; i < count; ++i) to[i] = nibble_at<false>(bytes, first + i * step) - zero;
      return;
    case Elements::int8:
      return dispatch<LoadIntegers<int8_t>>(static_cast<const int8_t*>(data) + first, step, count, zero, to);
    case Elements::uint8:
      return dispatch<LoadIntegers<uint8_t>>(bytes + first, step, count, zero, to);
    default:
      return dispatch<LoadIntegers<int16_t>>(static_cast<const int16_t*>(data) + first, step, count, zero,
                                             to);
  }
}

void load_elements(Elements type, const void* data, int64_t first, int64_t step, int64_t count, float* to) {
  switch (type) {
    case Elements::float16:
      return dispatch<LoadFloats<Float16>>(static_cast<const Float16*>(data) + first, step, count, to);
    case Elements::bfloat16:
      return dispatch<LoadFloats<BFloat16>>(static_cast<const BFloat16*>(data) + first, step, count, to);
    default:
      return dispatch<LoadFloats<float>>(static_cast<const float*>(data) + first, step, count, to);
  }
}

Prepared prepared_at(const Linear& problem, const LinearPlan& plan, void* prepared) {
  Prepared at{};
  auto* bytes = static_cast<uint8_t*>(prepared);
  at.sums = static_cast<double*>(prepared);
  if (plan.integers) {
    at.integers = reinterpret_cast<int16_t*>(bytes + up_to(problem.rows * 8, 64));
  } else {
    at.floats = static_cast<float*>(prepared);
  }
  return at;
}

void clear_row(const Linear& problem, const LinearPlan& plan, int64_t m, const Prepared& to) {
  if (!plan.integers) {
    float* row = to.floats + m * plan.padded;
    return std::fill(row + problem.depth, row + plan.padded, 0.0f);
  }
  to.sums[m] = 0.0;
  const int64_t group = 16 * plan.per_word, whole = problem.depth / group * group;
  for (int part = 0; part < plan.x_parts; ++part) {
    int16_t* row = to.integers + (m * plan.x_parts + part) * plan.padded;
    std::fill(row + whole, row + plan.padded, int16_t{0});
  }
}

void put_piece(const LinearPlan& plan, const int32_t* piece, int64_t begin, int64_t count, int64_t m,
               const Prepared& to) {
  int16_t* out = to.integers + m * plan.x_parts * plan.padded + begin;
  if (plan.x_parts == 1) {
    to.sums[m] += static_cast<double>(put_words(plan.per_word, piece, count, out));
    return;
  }
  int64_t sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t at = place_of(k, plan.per_word);
    out[at] = static_cast<int16_t>(piece[k] + plan.x_offset);
    out[plan.padded + at] = 1;
    sum += piece[k];
  }
  to.sums[m] += static_cast<double>(sum);
}

void put_piece(const LinearPlan& plan, const float* piece, int64_t begin, int64_t count, int64_t m,
               const Prepared& to) {
  std::memcpy(to.floats + m * plan.padded + begin, piece, static_cast<size_t>(count) * sizeof(float));
}

void prepare_rows(const Linear& problem, const LinearPlan& plan, int64_t begin, int64_t end, void* prepared) {
  const Prepared to = prepared_at(problem, plan, prepared);
  const Matrix& x = problem.x;
  for (int64_t m = begin; m < end; ++m) {
    clear_row(problem, plan, m, to);
    for (int64_t k = 0; k < problem.depth; k += kPiece) {
      const int64_t count = std::min(kPiece, problem.depth - k);
      const int64_t first = x.first + m * x.row_step + k * x.column_step;
      if (plan.integers) {
        int32_t piece[kPiece];
        load_elements(x.type, x.data, first, x.column_step, count, static_cast<int32_t>(problem.x_zero),
                      piece);
        put_piece(plan, piece, k, count, m, to);
      } else {
        float piece[kPiece];
        load_elements(x.type, x.data, first, x.column_step, count, piece);
        put_piece(plan, piece, k, count, m, to);
      }
    }
  }
}

}  // namespace pyquant::kernels
