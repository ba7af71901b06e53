// SPDX-License-Identifier: Apache-2.0
// The comparison with a step: floating-point expansions (Shewchuk 1997), sums of doubles that do not overlap
// and are exact as a whole.
#include "kernels/exact.h"

#include <algorithm>

namespace pyquant::kernels {
namespace {

/// A real number: the sum of its parts, smallest first, which do not overlap. Zeros are left out. Parts are
/// not adjacent either (Shewchuk's theorem 10), so between 2^-960 and 2^910 there is room for fewer than
/// 1,000.
template <int kMostParts>
class Expansion {
 public:
  void add(double value) {
    int kept = 0;
    for (int i = 0; i < count_; ++i) {
      // Knuth's two-sum: sum + error = value + part.
      const double part = parts_[i], sum = value + part;
      const double from_part = sum - value, from_value = sum - from_part;
      const double error = (value - from_value) + (part - from_part);
      if (error != 0.0) parts_[kept++] = error;
      value = sum;
    }
    if (value != 0.0) parts_[kept++] = value;
    count_ = kept;
  }

  void add_product(double a, double b) {
    const double product = a * b;
    add(std::fma(a, b, -product));
    add(product);
  }

  /// The sign of the last part is that of the number.
  double largest() const { return count_ == 0 ? 0.0 : parts_[count_ - 1]; }

  double estimate() const {
    double sum = 0.0;
    for (int i = 0; i < count_; ++i) sum += parts_[i];
    return sum;
  }

 private:
  double parts_[kMostParts];
  int count_ = 0;
};

struct Divisor {
  double high;
  double low;
};

/// Whether the number is at least step * (high + low).
template <class Number>
bool reaches(Number number, double step, Divisor d) {
  number.add_product(-step, d.low);
  number.add_product(-step, d.high);
  return number.largest() >= 0.0;
}

/// Of a number that is not negative: the largest k with k - 1/2 <= number / d.
template <class Number>
double round_up_half(const Number& number, double estimate, Divisor d) {
  double k = std::floor(estimate + 0.5);
  while (reaches(number, k + 0.5, d)) k += 1.0;
  while (!reaches(number, k - 0.5, d)) k -= 1.0;
  return k;
}

/// The quotient near a step.
template <int kMostParts>
int64_t round_near_step(const Product* products, int64_t n, Divisor d, int64_t lo, int64_t hi) {
  const double least = static_cast<double>(lo), most = static_cast<double>(hi);
  Expansion<kMostParts> number;
  for (int64_t i = 0; i < n; ++i) number.add_product(products[i].a, products[i].b);
  const bool negative = number.largest() < 0.0;
  if (negative) {
    number = Expansion<kMostParts>();
    for (int64_t i = 0; i < n; ++i) number.add_product(-products[i].a, products[i].b);
  }
  // Good to a few units of its last place: an integer away at most, where it does not saturate.
  const double estimate = number.estimate() / d.high;
  const double end = std::fabs(negative ? least : most) + 2.0;
  if (estimate > end) return negative ? lo : hi;
  const double k = round_up_half(number, estimate, d);
  const double r = negative ? -k : k;
  return r < least ? lo : r > most ? hi : static_cast<int64_t>(r);
}

}  // namespace

int64_t round_exact(const Product* products, int64_t n, double d1, double d2, int64_t lo, int64_t hi) {
  const double high = d1 * d2;
  double sum = 0.0, magnitude = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double product = products[i].a * products[i].b;
    sum += product;
    magnitude += std::fabs(product);
  }
  const double quick = sum / high;
  const double roundings = std::max(1.0, static_cast<double>(n) / kMostProducts);
  if (!near_tie(quick, magnitude / high * roundings)) {
    return static_cast<int64_t>(nearest(quick, static_cast<double>(lo), static_cast<double>(hi)));
  }
  const Divisor d{high, std::fma(d1, d2, -high)};
  if (n <= kMostProducts) return round_near_step<2 * kMostProducts + 4>(products, n, d, lo, hi);
  return round_near_step<1024>(products, n, d, lo, hi);
}

}  // namespace pyquant::kernels
