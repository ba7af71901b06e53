// SPDX-License-Identifier: Apache-2.0
// Functions of one value: NEG to LEAKY_RELU.
#include <map>

#include "circle/ops/grids.h"
#include "circle/ops/operand.h"
#include "circle/ops/row.h"
#include "kernels/function_table.h"
#include "kernels/unary.h"

namespace pyquant::circle {
namespace {

using kernels::Unary;
using kernels::UnaryFunction;

/// Elements of a part that a thread takes.
constexpr int64_t kGrain = 4096;

UnaryFunction function_of(const Builder& b) {
  static const std::map<std::string_view, Unary> functions = {{"NEG", Unary::neg},
                                                              {"ABS", Unary::abs},
                                                              {"SQRT", Unary::sqrt},
                                                              {"RSQRT", Unary::rsqrt},
                                                              {"EXP", Unary::exp},
                                                              {"LOG", Unary::log},
                                                              {"SQUARE", Unary::square},
                                                              {"FLOOR", Unary::floor},
                                                              {"CEIL", Unary::ceil},
                                                              {"ROUND", Unary::round},
                                                              {"SIN", Unary::sin},
                                                              {"COS", Unary::cos},
                                                              {"TANH", Unary::tanh},
                                                              {"RELU", Unary::relu},
                                                              {"LOGISTIC", Unary::logistic},
                                                              {"RELU6", Unary::relu6},
                                                              {"GELU", Unary::gelu},
                                                              {"ELU", Unary::elu},
                                                              {"LEAKY_RELU", Unary::leaky_relu}};
  UnaryFunction f{functions.at(b.op().op->name)};
  if (f.kind == Unary::gelu && b.option("approximate", false)) f.kind = Unary::gelu_tanh;
  if (f.kind == Unary::leaky_relu) f.alpha = b.option("alpha", 0.0f);
  return f;
}

/// A step that calls apply(x, y, n) for parts.
template <class T, class Apply>
Step parts(const InOperand& x, const OutOperand& y, Apply apply) {
  return {[x, y, apply](const Frame& frame) -> Status {
    const T* const from = x.read<T>(frame);
    T* const to = y.write<T>(frame);
    frame.threads().run(x.elements(), kGrain, [&](int64_t begin, int64_t end, int) {
      apply(from + begin, to + begin, end - begin);
    });
    y.finish(frame);
    return {};
  }};
}

/// Where scales differ from channel to channel: no tables, which would be as many as channels.
Step by_channel(Builder& b, UnaryFunction f) {
  return requantize_elements(b.in(0), b.out(0), [f](const kernels::GridChange& c, int32_t* q, int64_t n) {
    const ScaleZeroPoint in{c.from_scale, c.from_zero}, out{c.to_scale, c.to_zero};
    for (int64_t i = 0; i < n; ++i) q[i] = kernels::unary_quantized(f, q[i], in, out, {c.lo, c.hi});
  });
}

Result<Step> prepare(Builder& b) {
  const InOperand x(b, 0);
  const OutOperand y(b, 0);
  const UnaryFunction f = function_of(b);
  if (any_per_channel(b)) return by_channel(b, f);
  if (x.dtype() == DType::FLOAT32) {
    return parts<float>(x, y,
                        [f](const float* from, float* to, int64_t n) { kernels::unary(f, from, to, n); });
  }
  if (is_quantized(x.dtype())) {
    auto tables = b.shared().get<kernels::FunctionTables>("tables of functions",
                                                          [] { return new kernels::FunctionTables; });
    const kernels::FunctionKey key{f, x.qparams(), y.qparams(), y.grid()};
    return with_integer(x.dtype(), [&](auto type) {
      using Q = decltype(type);
      auto table = tables->get<Q>(key);
      return parts<Q>(x, y, [table](const Q* from, Q* to, int64_t n) { table->apply(from, to, n); });
    });
  }
  const auto integers = [&](auto type) {
    using T = decltype(type);
    return parts<T>(x, y,
                    [f](const T* from, T* to, int64_t n) { kernels::unary_integers(f.kind, from, to, n); });
  };
  return x.dtype() == DType::INT32 ? integers(int32_t{}) : integers(int64_t{});
}

}  // namespace

std::vector<OpRow> unary_rows() {
  FixedGrid (*const tanh)(bool) = [](bool narrow) {
    return narrow ? FixedGrid{2.0f / 256.0f, 128} : FixedGrid{1.0f / 32768.0f, 0};
  };
  FixedGrid (*const logistic)(bool) = [](bool narrow) {
    return FixedGrid{narrow ? 1.0f / 256.0f : 1.0f / 32768.0f, 0};
  };
  std::vector<OpRow> rows;
  for (const char* name : {"NEG", "ABS", "SQRT", "RSQRT", "EXP", "LOG", "SQUARE", "FLOOR", "CEIL", "ROUND",
                           "SIN", "COS", "TANH", "LOGISTIC", "RELU", "RELU6", "GELU", "ELU", "LEAKY_RELU"}) {
    OpRow& row = rows.emplace_back(OpRow{name, infer_same, prepare});
    if (row.name == "TANH") row.fixed = tanh;
    if (row.name == "LOGISTIC") row.fixed = logistic;
  }
  return rows;
}

}  // namespace pyquant::circle
