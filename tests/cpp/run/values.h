// SPDX-License-Identifier: Apache-2.0
// What the tests of moves and conversions compare with: elements one by one, by index arithmetic; grids in
// long double, whose 64 bits hold every product here exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "one_step.h"

namespace run {

using Place = std::vector<int64_t>;

inline int bits_of(DType dtype) {
  const auto* type = pyquant::circle::info(dtype);
  return 8 * type->block_bytes / type->block_elements;
}

inline int64_t count_of(const Shape& shape) { return *pyquant::circle::element_count(shape); }

/// The bits of element i.
inline uint64_t get(const std::vector<uint8_t>& bytes, DType dtype, int64_t i) {
  const int bits = bits_of(dtype);
  if (bits == 4) return (bytes.at(static_cast<size_t>(i / 2)) >> (i % 2 == 0 ? 0 : 4)) & 15u;
  uint64_t value = 0;
  for (int b = bits / 8; b-- > 0;) value = value << 8 | bytes.at(static_cast<size_t>(i * bits / 8 + b));
  return value;
}

inline int64_t signed_of(uint64_t value, DType dtype) {
  const int bits = bits_of(dtype);
  const auto* type = pyquant::circle::info(dtype);
  if (bits == 64 || type->lowest == 0 || (value >> (bits - 1)) == 0) return static_cast<int64_t>(value);
  return static_cast<int64_t>(value) - (int64_t{1} << bits);
}

inline uint64_t masked(int64_t value, DType dtype) {
  const int bits = bits_of(dtype);
  return bits == 64 ? static_cast<uint64_t>(value)
                    : static_cast<uint64_t>(value) & ((uint64_t{1} << bits) - 1);
}

inline Place place_of(const Shape& shape, int64_t element) {
  Place place(shape.size());
  for (size_t d = shape.size(); d-- > 0; element /= shape[d]) place[d] = element % shape[d];
  return place;
}

inline int64_t element_at(const Shape& shape, const Place& place) {
  int64_t element = 0;
  for (size_t d = 0; d < shape.size(); ++d) element = element * shape[d] + place[d];
  return element;
}

struct Cell {
  float scale = 1.0f;
  int64_t zero_point = 0;
};
inline Cell cell_of(const Operand& t, int64_t element) {
  if (t.scale.empty()) return {};
  const size_t c =
      t.scale.size() == 1 ? 0 : static_cast<size_t>(place_of(t.shape, element)[static_cast<size_t>(t.axis)]);
  return {t.scale[c], c < t.zero_point.size() ? t.zero_point[c] : 0};
}

/// round_half_away((q - from.zero_point) * from.scale / to.scale) + to.zero_point, saturated.
inline int64_t changed(int64_t q, Cell from, Cell to, DType dtype) {
  const auto* type = pyquant::circle::info(dtype);
  const long double real = static_cast<long double>(q - from.zero_point) * from.scale;
  const long double size = std::fabs(real), step = to.scale;
  // The quotient may be off by one; products with a step are exact.
  long double k = std::floor(size / step);
  while ((2 * k + 1) * step <= 2 * size) k += 1;
  while (k > 0 && (2 * k - 1) * step > 2 * size) k -= 1;
  const long double rounded = (real < 0 ? -k : k) + to.zero_point;
  if (rounded < type->lowest) return type->lowest;
  return rounded > type->highest ? type->highest : static_cast<int64_t>(rounded);
}

/// Random bytes of a tensor (a bool has any byte but its meaning is 0 or 1; floats have any bits).
inline std::vector<uint8_t> random_bytes(std::mt19937& random, DType dtype, const Shape& shape) {
  std::vector<uint8_t> bytes(static_cast<size_t>(*pyquant::circle::byte_size(dtype, shape)));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  if (bits_of(dtype) == 4 && count_of(shape) % 2 != 0) bytes.back() &= 15;
  return bytes;
}

inline int uniform(std::mt19937& random, int lo, int hi) {
  return std::uniform_int_distribution<int>(lo, hi)(random);
}

inline Shape random_shape(std::mt19937& random, int rank, int largest = 5) {
  Shape shape;
  for (int d = 0; d < rank; ++d)
    shape.push_back(uniform(random, 0, 20) == 0 ? 0 : uniform(random, 1, largest));
  return shape;
}

/// A random grid, or one for each channel of a dimension (axis -1: one).
inline void give_grid(std::mt19937& random, Operand& t, int axis) {
  const auto* type = pyquant::circle::info(t.dtype);
  t.axis = std::max(axis, 0);
  const int channels = axis < 0 ? 1 : t.shape[static_cast<size_t>(axis)];
  t.scale.clear();
  t.zero_point.clear();
  for (int c = 0; c < channels; ++c) {
    // Small integers have ties whose quotient no double holds: 3 * 5 / 6.
    const float any = 1.0f + 1e-4f * static_cast<float>(uniform(random, 0, 9999));
    t.scale.push_back(
        std::ldexp(uniform(random, 0, 1) == 0 ? static_cast<float>(uniform(random, 1, 12)) : any, -4));
    t.zero_point.push_back(uniform(random, static_cast<int>(std::max<int64_t>(type->lowest, -300)),
                                   static_cast<int>(std::min<int64_t>(type->highest, 300))));
  }
}

}  // namespace run
