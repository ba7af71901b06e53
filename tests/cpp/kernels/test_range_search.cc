// SPDX-License-Identifier: Apache-2.0
// candidate_errors: every version gives the same bits, and the sums are those of the candidates.
#include "../check.h"
#include "data.h"

using namespace pyquant;
using namespace pyquant::kernels;

namespace {

template <class T>
void check_type() {
  for (int64_t n : {0, 1, 15, 31, 32, 33, 63, 64, 65, 200, 1023, 1024, 1025, 5000}) {
    const std::vector<T> x = data::ordinary<T>(n, 1.0f, static_cast<uint32_t>(n));
    for (bool symmetric : {true, false}) {
      double expected[kCandidates], errors[kCandidates];
      for (Isa isa : data::isas()) {
        const check::Context here(isa_name(isa), " length ", n);
        const data::Using use(isa);
        candidate_errors(x.data(), n, -2.5f, 3.0f, {-7, 7}, symmetric, errors);
        for (int c = 0; c < kCandidates; ++c) {
          if (isa == Isa::scalar) expected[c] = errors[c];
          CHECK_BITS(errors[c], expected[c]);
        }
      }
      for (int c : {0, 1, 40, 79}) {
        const Range r = candidate_range(-2.5f, 3.0f, c);
        const ScaleZeroPoint p = choose_qparams(r.lo, r.hi, {-7, 7}, symmetric);
        double sum = 0;
        for (T v : x) {
          const double e = load(v) - dequantize_value(quantize_value(load(v), p, {-7, 7}), p);
          sum += e * e;
        }
        CHECK(std::fabs(errors[c] - sum) <= 1e-5 * sum);
      }
    }
  }
}

template <class T>
void check_importance() {
  for (int64_t n : {0, 1, 31, 33, 1025, 3000}) {
    const std::vector<T> x = data::ordinary<T>(n, 1.0f, static_cast<uint32_t>(n));
    std::vector<float> importance = data::ordinary<float>(n, 1.0f, 7);
    for (float& v : importance) v = std::fabs(v);
    double expected[kCandidates], errors[kCandidates];
    for (Isa isa : data::isas()) {
      const check::Context here(isa_name(isa), " length ", n);
      const data::Using use(isa);
      candidate_errors(x.data(), importance.data(), n, -2.5f, 3.0f, {0, 15}, false, errors);
      for (int c = 0; c < kCandidates; ++c) {
        if (isa == Isa::scalar) expected[c] = errors[c];
        CHECK_BITS(errors[c], expected[c]);
      }
    }
    const Range r = candidate_range(-2.5f, 3.0f, 40);
    const ScaleZeroPoint p = choose_qparams(r.lo, r.hi, {0, 15}, false);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double e = load(x[i]) - dequantize_value(quantize_value(load(x[i]), p, {0, 15}), p);
      sum += importance[i] * e * e;
    }
    CHECK(std::fabs(errors[40] - sum) <= 1e-5 * sum);
  }
}

}  // namespace

TEST(weighted_errors_float32) { check_importance<float>(); }
TEST(weighted_errors_bfloat16) { check_importance<BFloat16>(); }
TEST(weighted_errors_float16) { check_importance<Float16>(); }

TEST(errors_float32) { check_type<float>(); }
TEST(errors_bfloat16) { check_type<BFloat16>(); }
TEST(errors_float16) { check_type<Float16>(); }

TEST(first_candidate_is_the_full_range) {
  CHECK_EQ(candidate_range(-2.5f, 3.1f, 0).lo, -2.5f);
  CHECK_EQ(candidate_range(-2.5f, 3.1f, 0).hi, 3.1f);
}
