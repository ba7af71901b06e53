// SPDX-License-Identifier: Apache-2.0
// gram_add: chains of fused multiply-adds in every version, nothing written beside the
// panels.
#include "../check.h"
#include "data.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

template <class T>
std::vector<float> packed(const std::vector<T>& x, int64_t rows, int64_t columns, int64_t panel) {
  data::Guarded<float> out(rows * kPanel, 3);
  pack_panel(x.data(), rows, columns, panel, out.data());
  CHECK(out.intact());
  return std::vector<float>(out.data(), out.data() + rows * kPanel);
}

template <class T>
void check_type() {
  for (int64_t columns : {1, 5, 23, 24, 25, 48, 53}) {
    for (int64_t rows : {1, 3, 255, 256, 257, 600}) {
      const std::vector<T> x = data::ordinary<T>(rows * columns, 1.0f, static_cast<uint32_t>(rows + columns));
      for (Isa isa : data::isas()) {
        const check::Context here(isa_name(isa), " ", rows, " rows, ", columns, " columns");
        const data::Using use(isa);
        data::Guarded<float> gram(columns * columns, 1);
        std::fill_n(gram.data(), columns * columns, 0.25f);
        for (int64_t a = 0; a < panels_of(columns); ++a) {
          for (int64_t b = a; b < panels_of(columns); ++b) {
            gram_add(packed(x, rows, columns, a).data(), a, packed(x, rows, columns, b).data(), b, rows,
                     columns, gram.data(), true);
          }
        }
        CHECK(gram.intact());
        for (int64_t i = 0; i < columns; ++i) {
          for (int64_t j = 0; j < columns; ++j) {
            float expected = 0.25f;
            for (int64_t at = 0; at < rows; at += kGramRows) {
              float sum = 0.0f;
              for (int64_t n = at; n < std::min(rows, at + kGramRows); ++n) {
                sum = std::fma(load(x[n * columns + i]), load(x[n * columns + j]), sum);
              }
              expected += sum;
            }
            CHECK_BITS(gram[i * columns + j], expected);
          }
        }
      }
    }
  }
}

}  // namespace

TEST(gram_float32) { check_type<float>(); }
TEST(gram_bfloat16) { check_type<BFloat16>(); }
TEST(gram_float16) { check_type<Float16>(); }
