// SPDX-License-Identifier: Apache-2.0
// The blocked kernel equals the loop over columns as its definition says it, bit for bit in every version.
#include "../check.h"
#include "data.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

struct Case {
  int64_t rows, columns, group;
  std::vector<float> weight, factor, scale;
  std::vector<int32_t> zero_point;

  Case(int64_t r, int64_t c, int64_t g)
      : rows(r),
        columns(c),
        group(g),
        weight(data::ordinary<float>(r * c, 0.1f, static_cast<uint32_t>(r + c))),
        factor(data::ordinary<float>(c * c, 0.05f, static_cast<uint32_t>(c))) {
    for (int64_t j = 0; j < c; ++j) {
      factor[j * c + j] = 0.5f + std::fabs(factor[j * c + j]);
      for (int64_t k = 0; k < j; ++k) factor[j * c + k] = std::nanf("");  // is not read
    }
    for (int64_t s = 0; s < r * (c / g); ++s) {
      scale.push_back(0.01f + 0.003f * static_cast<float>(s % 7));
      zero_point.push_back(static_cast<int32_t>(s % 16));
    }
  }

  Gptq problem(int32_t* integers, double* loss) const {
    return {rows,  columns, factor.data(), scale.data(), zero_point.data(), columns / group,
            group, {0, 15}, integers,      loss};
  }
};

void run(const Gptq& p, const float* w) {
  const int64_t strips = strips_of(p.columns), values = strips * kStrip * kPanel;
  std::vector<float> factor(strips * kGptqBlock * kStrip, std::nanf("")),
      errors(kGptqBlock * kPanel, std::nanf(""));
  for (int64_t panel = 0; panel < panels_of(p.rows); ++panel) {
    data::Guarded<float> packed(values);
    gptq_pack_rows(w, p.rows, p.columns, panel, packed.data());
    for (int64_t first = 0; first < p.columns; first += kGptqBlock) {
      gptq_pack_factor(p, first, 0, strips_of(p.columns - first), factor.data());
      gptq_solve_block(p, first, panel, factor.data(), packed.data(), errors.data());
    }
    CHECK(packed.intact());
  }
}

void define(const Gptq& p, std::vector<float> w) {
  for (int64_t r = 0; r < p.rows; ++r) {
    float* row = w.data() + r * p.columns;
    for (int64_t j = 0; j < p.columns; ++j) {
      const int64_t s = r * p.scale_step + j / p.group;
      const ScaleZeroPoint q{p.scale[s], p.zero_point[s]};
      int32_t& integer = p.integers[r * p.columns + j];
      integer = quantize_value(row[j], q, p.grid);
      const float error = (row[j] - dequantize_value(integer, q)) / p.factor[j * p.columns + j];
      p.loss[r] += static_cast<double>(error) * static_cast<double>(error);
      for (int64_t k = j + 1; k < p.columns; ++k)
        row[k] = std::fma(-error, p.factor[j * p.columns + k], row[k]);
    }
  }
}

void check_case(const Case& c) {
  std::vector<int32_t> expected(c.rows * c.columns);
  std::vector<double> expected_loss(c.rows, 0.0);
  define(c.problem(expected.data(), expected_loss.data()), c.weight);
  for (Isa isa : data::isas()) {
    const check::Context here(isa_name(isa), " ", c.rows, " x ", c.columns, " groups of ", c.group);
    const data::Using use(isa);
    data::Guarded<int32_t> integers(c.rows * c.columns);
    data::Guarded<double> loss(c.rows);
    std::fill_n(loss.data(), c.rows, 0.0);
    run(c.problem(integers.data(), loss.data()), c.weight.data());
    CHECK(integers.intact() && loss.intact());
    for (int64_t i = 0; i < c.rows * c.columns; ++i) CHECK_EQ(integers[i], expected[i]);
    for (int64_t r = 0; r < c.rows; ++r)
      CHECK(std::isnan(loss[r]) ? std::isnan(expected_loss[r]) : loss[r] == expected_loss[r]);
  }
}

}  // namespace

TEST(gptq_of_every_shape) {
  for (int64_t rows : {1, 23, 24, 25, 49}) {
    for (int64_t columns : {1, 3, 4, 5, 127, 128, 129, 260}) check_case(Case(rows, columns, columns));
  }
}

TEST(gptq_groups) {
  check_case(Case(25, 120, 1));
  check_case(Case(25, 132, 3));
  check_case(Case(2, 256, 64));
}

TEST(gptq_hard_values) {
  Case c(50, 133, 133);
  c.weight = data::mixed<float>(50 * 133, 0.02f, 1);
  check_case(c);
}
