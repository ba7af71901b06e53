// SPDX-License-Identifier: Apache-2.0
// hadamard: exact on integers, as the matrix says; the same bits in every version; nothing written beside the
// lines.
#include "../check.h"
#include "data.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

/// Entry (i, k) of `core` doubled to n.
double entry(const std::vector<double>& core, int64_t order, int64_t i, int64_t k) {
  int negative = 0;
  for (int64_t a = i / order, b = k / order; a != 0 && b != 0; a /= 2, b /= 2) {
    negative ^= static_cast<int>(a & b & 1);
  }
  const double value = core[(i % order) * order + k % order];
  return negative ? -value : value;
}

std::vector<double> product(const std::vector<double>& x, int64_t lines, int64_t n,
                            const std::vector<double>& core, int64_t order) {
  data::Guarded<double> out(lines * n, 1);
  std::copy(x.begin(), x.end(), out.data());
  std::vector<double> scratch(order);
  hadamard(out.data(), lines, n, core.data(), order, scratch.data());
  CHECK(out.intact());
  return std::vector<double>(out.data(), out.data() + lines * n);
}

}  // namespace

TEST(hadamard_products) {
  for (int64_t order : {1, 3, 12, 28}) {
    std::vector<double> core(order * order);
    for (size_t i = 0; i < core.size(); ++i) core[i] = i * i % 7 < 3 ? 1.0 : -1.0;
    for (int64_t n : {order, 2 * order, 8 * order, 64 * order}) {
      const int64_t lines = 3;
      std::vector<double> integers(lines * n), reals(lines * n);
      for (int64_t i = 0; i < lines * n; ++i) {
        integers[i] = static_cast<double>(i * 37 % 101 - 50);
        reals[i] = std::sin(static_cast<double>(i)) * 1e-3;
      }
      std::vector<double> first;
      for (Isa isa : data::isas()) {
        const check::Context here(isa_name(isa), " order ", order, " n ", n);
        const data::Using use(isa);
        const std::vector<double> found = product(integers, lines, n, core, order);
        for (int64_t line = 0; line < lines; ++line) {
          for (int64_t k = 0; k < n; ++k) {
            double expected = 0.0;
            for (int64_t i = 0; i < n; ++i) {
              expected += integers[line * n + i] * entry(core, order, i, k);
            }
            CHECK(found[line * n + k] == expected);
          }
        }
        const std::vector<double> of_reals = product(reals, lines, n, core, order);
        if (first.empty()) first = of_reals;
        CHECK(of_reals == first);
      }
    }
  }
}
