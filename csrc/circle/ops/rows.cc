// SPDX-License-Identifier: Apache-2.0
// All rows by operator, and what rows share.
#include "circle/ops/row.h"

#include <algorithm>
#include <map>

#include "circle/check/check.h"
#include "circle/ops/moves.h"

namespace pyquant::circle {

std::optional<Shape> broadcast(const Shape& a, const Shape& b) {
  Shape out(std::max(a.size(), b.size()));
  for (size_t i = 0; i < out.size(); ++i) {
    const int32_t x = i < a.size() ? a[a.size() - 1 - i] : 1;
    const int32_t y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1) return std::nullopt;
    out[out.size() - 1 - i] = x == 1 ? y : x;
  }
  return out;
}

std::optional<size_t> axis_of(int64_t axis, size_t rank) {
  const auto limit = static_cast<int64_t>(rank);
  if (axis < -limit || axis >= limit) return std::nullopt;
  return static_cast<size_t>(axis < 0 ? axis + limit : axis);
}

std::string OpView::input_text(size_t i) const { return circle::input_text(graph_, op_, i); }
std::string OpView::output_text(size_t i) const { return circle::output_text(graph_, op_, i); }

std::vector<int64_t> Inference::ints(size_t i) const { return constant_ints(model(), graph(), op(), i); }

void Inference::set(size_t k, Shape shape, const char* why) {
  if (!element_count(shape)) return fault("an output that has a size");
  inferred_[k] = std::move(shape);
  why_.resize(std::max(why_.size(), k + 1), "");
  why_[k] = why;
}

void infer_same(Inference& it) { it.set(0, it.shape(0), "as the input"); }

void infer_broadcast(Inference& it) {
  auto shape = broadcast(it.shape(0), it.shape(1));
  if (!shape) return it.fault("shapes that broadcast");
  it.set(0, std::move(*shape), "what the inputs broadcast to");
}

namespace {

// Roles x and a are data: CAST, SHAPE and conversions have nothing else.
bool is_data(char role) { return role == 'x' || role == 'a'; }

}  // namespace

const Tensor* TargetCheck::data() const {
  for (size_t i = 0; i < inputs(); ++i) {
    if (is_data(op().op->input(i).role)) return input(i);
  }
  return nullptr;
}

void TargetCheck::onert_dtypes() const {
  const auto judge = [this](const Tensor* t, char role, const std::string& operand) {
    if (!t || !is_data(role)) return false;
    const DTypeInfo* type = info(t->dtype);
    if (type && op().op->onert.find(type->letter) != std::string_view::npos) return false;
    fault(Code::E_ONERT_DTYPE,
          operand + " is not computed correctly; dequantize before, or use another dtype");
    return true;
  };
  for (size_t i = 0; i < inputs(); ++i) {
    if (judge(input(i), op().op->input(i).role, input_text(i))) return;
  }
  for (size_t k = 0; k < outputs(); ++k) {
    if (judge(output(k), op().op->output(k).role, output_text(k))) return;
  }
}

void TargetCheck::onert_one_grid() const {
  const Tensor* out = output(0);
  for (size_t i = 0; out && i < inputs(); ++i) {
    const Tensor* t = input(i);
    if (!t || op().op->input(i).role != 'x' || same_qparams(*t, *out)) continue;
    fault(Code::E_ONERT_QPARAMS, input_text(i) + " has " + qparams_text(*t) + ", the output " +
                                     qparams_text(*out) + "; join them with QUANTIZE");
  }
}

size_t Builder::scratch(int64_t bytes) {
  const size_t at = scratch_;
  scratch_ += (static_cast<size_t>(std::max<int64_t>(bytes, 0)) + 63) / 64 * 64;
  return at;
}

Fault Builder::unsupported(const std::string& what) const {
  std::string text;
  for (size_t i = 0; i < inputs(); ++i) text += (i ? ", " : "") + (input(i) ? input_text(i) : "none");
  return {Code::E_RUN_UNSUPPORTED, what + ": " + text + " -> " + output_text(0), op_name(op())};
}

const OpRow& row_of(const OpInfo& op) {
  static const std::map<std::string_view, OpRow> rows = [] {
    std::map<std::string_view, OpRow> all;
    for (const auto& family : {linear_rows(), norm_rows(), binary_rows(), unary_rows(), softmax_rows(),
                               reduce_rows(), order_rows(), shape_rows(), join_rows(), slice_rows(),
                               gather_rows(), convert_rows(), compare_rows()}) {
      for (const OpRow& row : family) all.emplace(row.name, row);
    }
    return all;
  }();
  return rows.at(op.name);
}

}  // namespace pyquant::circle
