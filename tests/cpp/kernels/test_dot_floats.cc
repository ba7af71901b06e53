// SPDX-License-Identifier: Apache-2.0
// Float products: the order of sums that dot.h defines, bit for bit in every version, and near the sums of
// double.
#include <random>

#include "../check.h"
#include "data.h"
#include "kernels/dot.h"

using namespace pyquant::kernels;

namespace {

/// Weights as a file holds them, and what they stand for.
struct Weights {
  std::vector<uint8_t> bytes;
  std::vector<float> value;
  std::vector<float> scale;
  std::vector<int64_t> zero;
};

template <class T>
void put(std::vector<uint8_t>& bytes, int64_t i, T v) {
  std::memcpy(&bytes[i * sizeof v], &v, sizeof v);
}

Weights weights_of(Elements e, int64_t rows, int64_t step, bool transposed, bool per_channel,
                   std::mt19937_64& random) {
  const int64_t n = rows * step;
  Weights w;
  w.value.resize(n);
  std::normal_distribution<float> normal;
  const int64_t channels = per_channel ? rows : 1;
  for (int64_t c = 0; c < channels; ++c) {
    w.scale.push_back(std::fabs(normal(random)) + 0.01f);
    w.zero.push_back(e == Elements::uint8 || e == Elements::uint4 ? random() % 16 : 0);
  }
  if (e == Elements::q4_0 || e == Elements::q8_0) {
    const int bits = e == Elements::q4_0 ? 4 : 8;
    for (float& v : w.value) v = normal(random);
    w.bytes.resize(n / kBlockLength * block_bytes(bits));
    quantize_blocks(w.value.data(), n / kBlockLength, bits, w.bytes.data());
    dequantize_blocks(w.bytes.data(), n / kBlockLength, bits, w.value.data());
    return w;
  }
  w.bytes.resize(is_four_bit(e)           ? (n + 1) / 2
                 : e == Elements::float32 ? 4 * n
                 : e < Elements::int16    ? n
                                          : 2 * n);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = per_channel ? (transposed ? i % rows : i / step) : 0;
    if (!is_grid(e)) {
      w.value[i] = normal(random);
      if (e == Elements::float32) {
        put(w.bytes, i, w.value[i]);
      } else if (e == Elements::float16) {
        const auto half = data::from_float<Float16>(w.value[i]);
        put(w.bytes, i, half);
        w.value[i] = load(half);
      } else {
        const auto half = data::from_float<BFloat16>(w.value[i]);
        put(w.bytes, i, half);
        w.value[i] = load(half);
      }
      continue;
    }
    int64_t q = static_cast<int64_t>(random() % 65536) - 32768;
    if (e == Elements::int4) q = (q & 15) - 8;
    if (e == Elements::uint4) q &= 15;
    if (e == Elements::int8) q = (q & 255) - 128;
    if (e == Elements::uint8) q &= 255;
    if (is_four_bit(e)) {
      w.bytes[i / 2] |= static_cast<uint8_t>((q & 15) << (i % 2 * 4));
    } else if (e == Elements::int16) {
      put(w.bytes, i, static_cast<int16_t>(q));
    } else {
      w.bytes[i] = static_cast<uint8_t>(q);
    }
    w.value[i] = static_cast<float>(q - w.zero[c]) * w.scale[c];
  }
  return w;
}

/// What the header says.
double by_the_header(const std::vector<float>& x, const std::vector<float>& w) {
  double sum = 0.0;
  const auto depth = static_cast<int64_t>(x.size());
  for (int64_t begin = 0; begin < depth; begin += kFloatBlock) {
    float chain[8] = {};
    for (int64_t k = begin; k < std::min(depth, begin + kFloatBlock); ++k) {
      chain[k % 8] = std::fma(x[k], w[k], chain[k % 8]);
    }
    sum += static_cast<double>(((chain[0] + chain[1]) + (chain[2] + chain[3])) +
                               ((chain[4] + chain[5]) + (chain[6] + chain[7])));
  }
  return sum;
}

template <class T>
void check_case(Elements x_type, Elements w_type, int64_t rows, int64_t columns, int64_t depth,
                bool transposed, std::mt19937_64& random) {
  const bool per_channel = random() % 2, has_bias = random() % 2;
  const bool blocks = w_type == Elements::q4_0 || w_type == Elements::q8_0;
  const Weights w = weights_of(w_type, columns, depth, transposed && !blocks, per_channel, random);
  const bool by_column = transposed && !blocks;
  std::normal_distribution<float> normal;
  std::vector<T> x(rows * depth), bias(columns);
  for (T& v : x) v = data::from_float<T>(normal(random));
  for (T& v : bias) v = data::from_float<T>(normal(random));
  std::vector<uint8_t> prepared_bytes, scratch_bytes;

  Linear problem{};
  problem.rows = rows;
  problem.columns = columns;
  problem.depth = depth;
  problem.x = {x_type, x.data(), transposed ? 1 : depth, transposed ? rows : 1};
  problem.w = {w_type, w.bytes.data(), by_column ? 1 : depth, by_column ? columns : 1};
  problem.w_scales = {w.scale.data(), w.zero.data(), per_channel ? 1 : 0};
  problem.bias = has_bias ? bias.data() : nullptr;
  problem.bias_type = x_type;
  data::Guarded<T> y(rows * columns);
  problem.y = {x_type, y.data(), columns, 1.0f, 0, 0, 0, -2.5f, 6.0f};
  LinearPlan plan;
  CHECK(plan_linear(problem, &plan));

  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    const check::Context here(isa_name(isa), " w ", int(w_type), " ", rows, "x", columns, "x", depth,
                              transposed ? " transposed" : "");
    std::vector<double> prepared(plan.prepared_bytes / 8 + 8);
    prepare_rows(problem, plan, 0, rows, prepared.data());
    const int64_t middle = static_cast<int64_t>(random() % (plan.units + 1));
    run_units(problem, plan, prepared.data(), middle, plan.units);
    run_units(problem, plan, prepared.data(), 0, middle);
    CHECK(y.intact());
    std::vector<float> row(depth), column(depth);
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t n = 0; n < columns; ++n) {
        for (int64_t k = 0; k < depth; ++k) {
          row[k] = load(x[m * problem.x.row_step + k * problem.x.column_step]);
          column[k] = w.value[n * problem.w.row_step + k * problem.w.column_step];
        }
        double sum = by_the_header(row, column), plain = 0.0, magnitude = 0.0;
        for (int64_t k = 0; k < depth; ++k) {
          const double product = static_cast<double>(row[k]) * static_cast<double>(column[k]);
          plain += product;
          magnitude += std::fabs(product);
        }
        CHECK(std::fabs(plain - sum) <= 1e-6 * magnitude);
        if (has_bias) sum += static_cast<double>(load(bias[n]));
        const auto v = static_cast<float>(sum);
        CHECK_BITS(y[m * columns + n], data::from_float<T>(v < -2.5f ? -2.5f : v > 6.0f ? 6.0f : v));
      }
    }
  }
}

constexpr Elements kWeights[] = {Elements::int4,  Elements::uint4,   Elements::int8, Elements::uint8,
                                 Elements::int16, Elements::float32, Elements::q4_0, Elements::q8_0};

}  // namespace

TEST(dot_floats_are_summed_in_order) {
  std::mt19937_64 random(7);
  for (Elements w : kWeights) {
    for (int64_t depth : {0, 1, 7, 8, 9, 31, 33, 64, 255, 256, 257, 320, 600}) {
      const int64_t even = w == Elements::q4_0 || w == Elements::q8_0 ? (depth + 31) / 32 * 32 : depth;
      for (int round = 0; round < 3; ++round) {
        check_case<float>(Elements::float32, w, 1 + random() % 9, 1 + random() % 60, even, round == 2,
                          random);
      }
    }
  }
  for (Elements w : {Elements::float16, Elements::int8, Elements::q8_0}) {
    check_case<Float16>(Elements::float16, w, 5, 30, 288, false, random);
  }
  for (Elements w : {Elements::bfloat16, Elements::int4, Elements::q4_0}) {
    check_case<BFloat16>(Elements::bfloat16, w, 5, 30, 288, false, random);
  }
  check_case<float>(Elements::float32, Elements::float32, 300, 26, 40, false, random);
}

TEST(dot_floats_keep_nan_and_infinity) {
  const float inf = std::numeric_limits<float>::infinity();
  const float x[] = {1.0f, inf, std::nanf(""), 1.0f}, w[] = {1.0f, 1.0f};
  float y[2];
  Linear problem{};
  problem.rows = 2;
  problem.columns = 1;
  problem.depth = 2;
  problem.x = {Elements::float32, x, 2};
  problem.w = {Elements::float32, w, 2};
  problem.y = {Elements::float32, y, 1, 1.0f, 0, 0, 0, -inf, inf};
  LinearPlan plan;
  CHECK(plan_linear(problem, &plan));
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    std::vector<double> prepared(plan.prepared_bytes / 8 + 8);
    prepare_rows(problem, plan, 0, 2, prepared.data());
    run_units(problem, plan, prepared.data(), 0, plan.units);
    CHECK_EQ(y[0], inf);
    CHECK(std::isnan(y[1]));
  }
}

TEST(dot_refuses_blocks_that_do_not_fill_rows) {
  Linear problem{};
  problem.rows = problem.columns = 1;
  problem.depth = 40;
  problem.x = {Elements::float32, nullptr, 40};
  problem.w = {Elements::q4_0, nullptr, 40};
  problem.y.type = Elements::float32;
  LinearPlan plan;
  CHECK(!plan_linear(problem, &plan));
  problem.depth = problem.w.row_step = 64;
  CHECK(plan_linear(problem, &plan));
  problem.w.column_step = 2;
  CHECK(!plan_linear(problem, &plan));
}
