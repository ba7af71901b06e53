// SPDX-License-Identifier: Apache-2.0
// Conversions between tensors and what kernels take.
#include "circle/ops/operand.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/convert.h"
#include "pyquant/kernels.h"

namespace pyquant::circle {
namespace {

int64_t element_bytes(DType kernel_dtype) { return info(kernel_dtype)->block_bytes; }

template <class T>
void widen_floats(const uint8_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    T x;
    std::memcpy(&x, from + i * static_cast<int64_t>(sizeof x), sizeof x);
    to[i] = kernels::load(x);
  }
}

template <class T>
void narrow_floats(const float* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) kernels::store_any(from[i], to[i]);
}

bool converts(DType dtype) { return kernel_dtype(dtype) != dtype; }

/// To the kernel's dtype.
void convert(DType dtype, const uint8_t* from, int64_t n, void* to) {
  switch (dtype) {
    case DType::FLOAT16:
      return widen_floats<kernels::Float16>(from, n, static_cast<float*>(to));
    case DType::BFLOAT16:
      return widen_floats<kernels::BFloat16>(from, n, static_cast<float*>(to));
    case DType::INT4:
      return kernels::unpack_int4(from, n, static_cast<int8_t*>(to));
    case DType::UINT4:
      return kernels::unpack_int4(from, n, static_cast<uint8_t*>(to));
    default:
      std::memcpy(to, from, static_cast<size_t>(n * element_bytes(dtype)));
  }
}

template <class T>
T element(const uint8_t* bytes, int64_t i) {
  T x;
  std::memcpy(&x, bytes + i * static_cast<int64_t>(sizeof x), sizeof x);
  return x;
}

double integer(DType dtype, const uint8_t* bytes, int64_t i) {
  switch (dtype) {
    case DType::INT4:
    case DType::UINT4: {
      const int nibble = bytes[i / 2] >> (i % 2 * 4) & 15;
      return dtype == DType::INT4 ? (nibble ^ 8) - 8 : nibble;
    }
    case DType::INT8:
      return element<int8_t>(bytes, i);
    case DType::UINT8:
      return bytes[i];
    default:
      return element<int16_t>(bytes, i);
  }
}

void read_reals(const TensorArg& arg, const uint8_t* bytes, double* out) {
  const DType dtype = arg.dtype();
  const int64_t n = arg.elements;
  if (is_ggml(dtype)) {
    const int bits = dtype == DType::GGML_Q4_0 ? 4 : 8;
    for (int64_t i = 0; i < n; i += kernels::kBlockLength) {
      float block[kernels::kBlockLength];
      kernels::dequantize_blocks(bytes + i / kernels::kBlockLength * kernels::block_bytes(bits), 1, bits,
                                 block);
      std::copy_n(block, std::min(n - i, kernels::kBlockLength), out + i);
    }
    return;
  }
  if (is_float(dtype)) {
    for (int64_t i = 0; i < n; ++i) {
      if (dtype == DType::FLOAT32) out[i] = static_cast<double>(element<float>(bytes, i));
      if (dtype == DType::FLOAT16)
        out[i] = static_cast<double>(kernels::load(element<kernels::Float16>(bytes, i)));
      if (dtype == DType::BFLOAT16)
        out[i] = static_cast<double>(kernels::load(element<kernels::BFloat16>(bytes, i)));
    }
    return;
  }
  static const QParams kPlain{{1.0f}, {0}, 0, 0};  // integers that are numbers
  const QParams& q = arg.tensor->quant ? *arg.tensor->quant : kPlain;
  const auto channels = static_cast<int64_t>(q.scale.size());
  int64_t inner = 1;
  for (size_t d = arg.rank(); d-- > static_cast<size_t>(q.axis) + 1;) inner *= arg.shape[d];
  for (int64_t i = 0; i < n; ++i) {
    const auto c = static_cast<size_t>(channels > 1 ? i / inner % channels : 0);
    out[i] =
        (integer(dtype, bytes, i) - static_cast<double>(q.zero_point[c])) * static_cast<double>(q.scale[c]);
  }
}

}  // namespace

DType kernel_dtype(DType dtype) {
  if (is_float(dtype)) return DType::FLOAT32;
  if (dtype == DType::INT4) return DType::INT8;
  if (dtype == DType::UINT4) return DType::UINT8;
  return dtype;
}

Grid grid_of(DType dtype) {
  const DTypeInfo& type = *info(dtype);
  return {static_cast<int32_t>(type.lowest), static_cast<int32_t>(type.highest)};
}

InOperand::InOperand(Builder& b, const TensorArg& arg) : arg_(arg), dtype_(kernel_dtype(arg_.dtype())) {
  const int64_t bytes = arg_.elements * element_bytes(dtype_);
  const bool misplaced =
      reinterpret_cast<uintptr_t>(arg_.constant) % static_cast<uintptr_t>(element_bytes(dtype_)) != 0;
  if (arg_.constant && (converts(arg_.dtype()) || misplaced)) {
    auto copy = std::make_shared<std::vector<uint64_t>>(static_cast<size_t>((bytes + 7) / 8));
    convert(arg_.dtype(), arg_.constant, arg_.elements, copy->data());
    constant_ = std::move(copy);
  } else if (converts(arg_.dtype())) {
    scratch_ = b.scratch(bytes);
  }
}

const void* InOperand::read_bytes(const Frame& frame) const {
  if (constant_) return constant_->data();
  if (!scratch_) return frame.in(arg_);
  uint8_t* const to = frame.scratch(*scratch_);
  convert(arg_.dtype(), frame.in(arg_), arg_.elements, to);
  return to;
}

OutOperand::OutOperand(Builder& b, size_t k) : arg_(b.out(k)), dtype_(kernel_dtype(arg_.dtype())) {
  if (converts(arg_.dtype())) scratch_ = b.scratch(arg_.elements * element_bytes(dtype_));
}

void OutOperand::finish(const Frame& frame) const {
  if (!scratch_) return;
  const int64_t n = arg_.elements;
  switch (arg_.dtype()) {
    case DType::FLOAT16:
      return narrow_floats(frame.scratch<float>(*scratch_), n, frame.out<kernels::Float16>(arg_));
    case DType::BFLOAT16:
      return narrow_floats(frame.scratch<float>(*scratch_), n, frame.out<kernels::BFloat16>(arg_));
    case DType::INT4:
      kernels::pack_int4(frame.scratch<int8_t>(*scratch_), n, frame.out(arg_));
      return;
    default:
      kernels::pack_int4(frame.scratch<uint8_t>(*scratch_), n, frame.out(arg_));
  }
}

RealOperand::RealOperand(Builder& b, size_t i) : arg_(b.in(i)) {
  if (arg_.constant) {
    auto values = std::make_shared<std::vector<double>>(static_cast<size_t>(arg_.elements));
    read_reals(arg_, arg_.constant, values->data());
    constant_ = std::move(values);
  } else {
    scratch_ = b.scratch(arg_.elements * static_cast<int64_t>(sizeof(double)));
  }
}

double RealOperand::most() const {
  if (!is_quantized(arg_.dtype())) return HUGE_VAL;
  const Grid grid = grid_of(arg_.dtype());
  const float scale = *std::max_element(arg_.tensor->quant->scale.begin(), arg_.tensor->quant->scale.end());
  return static_cast<double>(grid.qmax - grid.qmin) * static_cast<double>(scale);
}

const double* RealOperand::read(const Frame& frame) const {
  if (constant_) return constant_->data();
  auto* const to = frame.scratch<double>(scratch_);
  read_reals(arg_, frame.in(arg_), to);
  return to;
}

std::vector<kernels::Rounder> channel_rounders(const TensorArg& y, kernels::Fused fused) {
  const QParams& q = *y.tensor->quant;
  std::vector<kernels::Rounder> rounders;
  for (size_t c = 0; c < q.scale.size(); ++c) {
    const ScaleZeroPoint p{q.scale[c], static_cast<int32_t>(q.zero_point[c])};
    kernels::limit(fused, &rounders.emplace_back(kernels::Rounder::make(p, grid_of(y.dtype()))));
  }
  return rounders;
}

ChannelResult::ChannelResult(Builder& b, size_t k, kernels::Fused fused) : out_(b, k) {
  const TensorArg& y = b.out(k);
  const QParams& q = *y.tensor->quant;
  if (y.per_channel()) {
    for (size_t d = y.rank(); d-- > static_cast<size_t>(q.axis) + 1;) inner_ *= std::max(y.shape[d], 1);
  }
  rounders_ = std::make_shared<std::vector<kernels::Rounder>>(channel_rounders(y, fused));
}

kernels::ChannelOutput ChannelResult::at(const Frame& frame) const {
  return {rounders_->data(), static_cast<int64_t>(rounders_->size()), inner_, out_.dtype() == DType::INT16,
          out_.write<uint8_t>(frame)};
}

Step real_step(Builder& b, kernels::Fused fused, std::function<void(const Frame&, double*)> compute) {
  const ChannelResult y(b, 0, fused);
  const size_t scratch = b.scratch(y.elements() * static_cast<int64_t>(sizeof(double)));
  return {[y, scratch, compute = std::move(compute)](const Frame& frame) -> Status {
            auto* const values = frame.scratch<double>(scratch);
            compute(frame, values);
            const kernels::ChannelOutput to = y.at(frame);
            for (int64_t i = 0; i < y.elements(); ++i) to.round(i, values[i]);
            y.finish(frame);
            return {};
          },
          0};
}

std::optional<std::vector<int64_t>> known_ints(const TensorArg& arg) {
  if (!arg.constant && arg.elements != 0) return std::nullopt;
  return read_ints(arg.dtype(), arg.constant, arg.elements);
}

bool any_per_channel(const Builder& b) {
  const OpInfo& op = *b.op().op;
  for (size_t i = 0; i < b.inputs(); ++i) {
    if (op.input(i).role == 'x' && b.in(i) && b.in(i).per_channel()) return true;
  }
  for (size_t k = 0; k < b.outputs(); ++k) {
    if (op.output(k).role == 'x' && b.out(k).per_channel()) return true;
  }
  return false;
}

kernels::Fused fused_of(const Builder& b) {
  switch (b.option<int64_t>("fused_activation_function", 0)) {
    case 1:
      return kernels::Fused::relu;
    case 2:
      return kernels::Fused::relu_n1_to_1;
    case 3:
      return kernels::Fused::relu6;
    case 4:
      return kernels::Fused::tanh;
    default:
      return kernels::Fused::none;
  }
}

}  // namespace pyquant::circle
