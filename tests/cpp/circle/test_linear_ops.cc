// SPDX-License-Identifier: Apache-2.0
// The steps of operators with weights against loops over real numbers: how operands lie, broadcasting,
// adjoints, padding, strides, zero points, scales, activations, every dtype; one thread and three.
#include <cmath>
#include <random>

#include "../check.h"
#include "circle/ops/row.h"
#include "kernels/threads.h"
#include "pyquant/kernels.h"
#include "sample.h"

using namespace pyquant::circle;
using pyquant::kernels::Threads;

namespace {

using Real = long double;

struct Values {
  std::vector<int> shape;
  std::string dtype;
  std::vector<uint8_t> bytes;
  std::vector<float> scale;
  std::vector<int64_t> zero;
  int axis = 0;
  std::vector<Real> value;

  int64_t count() const {
    int64_t n = 1;
    for (int d : shape) n *= d;
    return n;
  }
  int64_t channel(int64_t i) const {
    if (scale.size() <= 1) return 0;
    int64_t inner = 1;
    for (size_t d = static_cast<size_t>(axis) + 1; d < shape.size(); ++d) inner *= shape[d];
    return i / inner % shape[static_cast<size_t>(axis)];
  }
};

bool is_real(const std::string& dtype) { return dtype == "float32"; }

int64_t get(const Values& t, int64_t i) {
  const DType dtype = dtype_by_name(t.dtype)->dtype;
  const uint8_t* at = t.bytes.data();
  const auto wide = [&](auto v) {
    std::memcpy(&v, at + i * static_cast<int64_t>(sizeof v), sizeof v);
    return static_cast<int64_t>(v);
  };
  switch (dtype) {
    case DType::INT4:
      return (((at[i / 2] >> (i % 2 * 4)) & 15) ^ 8) - 8;
    case DType::UINT4:
      return (at[i / 2] >> (i % 2 * 4)) & 15;
    case DType::INT8:
      return wide(int8_t{});
    case DType::UINT8:
      return wide(uint8_t{});
    case DType::INT16:
      return wide(int16_t{});
    case DType::INT32:
      return wide(int32_t{});
    default:
      return wide(int64_t{});
  }
}

/// Random bytes (floats: numbers near 1), random qparams, and the real numbers that they are.
Values random_operand(const std::string& dtype, std::vector<int> shape, int axis, bool zeros,
                      std::mt19937& random) {
  Values t{std::move(shape), dtype, {}, {}, {}, std::max(axis, 0), {}};
  const DTypeInfo& type = *dtype_by_name(dtype);
  t.bytes.resize(static_cast<size_t>(*byte_size(type.dtype, {t.shape.begin(), t.shape.end()})));
  const auto n = t.count();
  std::normal_distribution<float> normal;
  if (is_real(dtype)) {
    for (int64_t i = 0; i < n; ++i) {
      const float v = normal(random);
      std::memcpy(&t.bytes[static_cast<size_t>(4 * i)], &v, 4);
      t.value.push_back(v);
    }
    return t;
  }
  for (uint8_t& b : t.bytes) b = static_cast<uint8_t>(random());
  if (type.dtype == DType::INT32 || type.dtype == DType::INT64) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t v = static_cast<int64_t>(random() % 20001) - 10000;
      std::memcpy(&t.bytes[static_cast<size_t>(i * type.block_bytes)], &v,
                  static_cast<size_t>(type.block_bytes));
    }
  }
  const int channels = axis >= 0 ? t.shape[static_cast<size_t>(axis)] : 1;
  for (int c = 0; c < channels; ++c) {
    t.scale.push_back(std::fabs(normal(random)) * 0.1f + 0.01f);
    t.zero.push_back(zeros && type.highest - type.lowest < 70000
                         ? type.lowest + static_cast<int64_t>(random()) % (type.highest - type.lowest + 1)
                         : 0);
  }
  for (int64_t i = 0; i < n; ++i) {
    const auto c = static_cast<size_t>(t.channel(i));
    t.value.push_back(static_cast<Real>(get(t, i) - t.zero[c]) * static_cast<Real>(t.scale[c]));
  }
  return t;
}

/// Runs the operator on these inputs (a dtype of "" is an absent one); the output's bytes are filled in.
void run(const std::string& op, const std::string& options, std::vector<Values>& in, Values& out,
         int threads) {
  std::vector<sample::T> inputs, outputs;
  const auto declare = [](const Values& t) {
    if (t.dtype.empty()) return sample::T{nullptr, {}};
    return sample::T{t.dtype.c_str(), t.shape, t.scale, false, t.axis};
  };
  for (const Values& t : in) inputs.push_back(declare(t));
  outputs.push_back(declare(out));
  Model model = sample::one_op(op, inputs, outputs, options);
  const Operator& it = model.graphs[0].operators[0];
  std::vector<uint8_t*> data(model.graphs[0].tensors.size());
  const auto argument = [&](int32_t index, Values& t) {
    TensorArg arg;
    if (index < 0) return arg;
    Tensor& tensor = model.graphs[0].tensors[static_cast<size_t>(index)];
    if (!t.scale.empty()) {
      tensor.quant->scale = t.scale;  // one_op prints few digits
      tensor.quant->zero_point = t.zero;
    }
    arg.tensor = &tensor;
    arg.index = static_cast<size_t>(index);
    arg.shape = tensor.shape;
    arg.elements = t.count();
    data[arg.index] = t.bytes.data();
    return arg;
  };
  std::vector<TensorArg> in_args, out_args;
  for (size_t i = 0; i < in.size(); ++i) in_args.push_back(argument(it.inputs[i], in[i]));
  out_args.push_back(argument(it.outputs[0], out));
  SharedData shared;
  Builder builder(model, model.graphs[0], it, in_args, out_args, shared);
  auto step = row_of(*it.op).prepare(builder);
  CHECK_MSG(step.ok(), step.ok() ? "" : step.fault().text());
  if (!step.ok()) return;
  std::vector<uint8_t> memory(builder.scratch_bytes() + 64);
  auto* scratch =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
  Threads pool(threads);
  CHECK(step.value().run(Frame(data.data(), scratch, pool)).ok());
}

Real activated(Real v, const std::string& activation) {
  if (activation == "RELU") return v < 0 ? 0 : v;
  if (activation == "RELU6") return v < 0 ? 0 : v > 6 ? 6 : v;
  if (activation == "RELU_N1_TO_1") return v < -1 ? -1 : v > 1 ? 1 : v;
  if (activation == "TANH") return std::tanh(v);
  return v;
}

/// The output of all threads against real numbers, rounded once.
void check_output(const std::string& op, const std::string& options, std::vector<Values> in, Values out,
                  const std::vector<Real>& real, const std::string& activation) {
  Real largest = 0;
  for (Real v : real) largest = std::max(largest, std::fabs(v));
  for (int threads : {1, 3}) {
    std::fill(out.bytes.begin(), out.bytes.end(), uint8_t{0x5a});
    const check::Context here(op, " ", in[0].dtype, " ", in[1].dtype, " ", options, " threads ", threads);
    run(op, options, in, out, threads);
    for (int64_t i = 0; i < out.count(); ++i) {
      const Real v = activated(real[static_cast<size_t>(i)], activation);
      if (is_real(out.dtype)) {
        float y;
        std::memcpy(&y, &out.bytes[static_cast<size_t>(4 * i)], 4);
        CHECK(std::fabs(static_cast<Real>(y) - v) <= 1e-5L * (1 + largest));
        continue;
      }
      const DTypeInfo& type = *dtype_by_name(out.dtype);
      const Real steps = v / static_cast<Real>(out.scale[0]),
                 fraction = std::fabs(steps) - std::floor(std::fabs(steps));
      if (std::fabs(fraction - 0.5L) < 1e-9L)
        continue;  // long double does not decide; kernels/test_dot.cc does
      const Real q = std::round(steps) + static_cast<Real>(out.zero[0]);
      const Real end = q < type.lowest ? type.lowest : q > type.highest ? type.highest : q;
      CHECK_EQ(get(out, i), static_cast<int64_t>(end));
    }
  }
}

std::string bias_dtype(const std::string& x) { return is_real(x) ? x : x == "int16" ? "int64" : "int32"; }
Values none() { return {{}, "", {}, {}, {}, 0, {}}; }

/// An output on a grid in which most values of this size fit.
Values output_for(const std::string& dtype, std::vector<int> shape, const std::vector<Real>& real, bool zeros,
                  std::mt19937& random) {
  Values out = random_operand(dtype, std::move(shape), -1, zeros, random);
  Real most = 1e-3L;
  for (Real v : real) most = std::max(most, std::fabs(v));
  const DTypeInfo& type = *dtype_by_name(dtype);
  if (!is_real(dtype))
    out.scale[0] = static_cast<float>(most / static_cast<Real>(type.highest - type.lowest) * 1.5L);
  return out;
}

const char* const kActivations[] = {"NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH"};
const char* const kData[] = {"float32", "int4", "uint4", "int8", "uint8", "int16"};

std::vector<std::string> weights_for(const std::string& x) {
  std::vector<std::string> all = {"int4", "uint4", "int8", "uint8", "int16"};
  if (is_real(x)) all.push_back("float32");
  return all;
}

}  // namespace

TEST(fully_connected_steps) {
  std::mt19937 random(11);
  for (const std::string x_type : kData) {
    for (const std::string& w_type : weights_for(x_type)) {
      for (int round = 0; round < 5; ++round) {
        const int rows = 1 + static_cast<int>(random() % 40), depth = 1 + static_cast<int>(random() % 90);
        const int columns = 1 + static_cast<int>(random() % 70);
        const bool zeros = random() % 2, has_bias = random() % 2;
        const std::string activation = kActivations[round];
        const Values x = random_operand(x_type, {1, rows, depth}, -1, zeros, random);
        const Values w =
            random_operand(w_type, {columns, depth}, is_real(w_type) || round % 2 ? -1 : 0, zeros, random);
        const Values bias =
            has_bias ? random_operand(bias_dtype(x_type), {columns}, -1, false, random) : none();
        std::vector<Real> real;
        for (int m = 0; m < rows; ++m) {
          for (int n = 0; n < columns; ++n) {
            Real sum = has_bias ? bias.value[static_cast<size_t>(n)] : 0;
            for (int k = 0; k < depth; ++k) {
              sum +=
                  x.value[static_cast<size_t>(m * depth + k)] * w.value[static_cast<size_t>(n * depth + k)];
            }
            real.push_back(sum);
          }
        }
        const Values out = output_for(x_type, {1, rows, columns}, real, zeros, random);
        check_output("FULLY_CONNECTED",
                     R"({"keep_num_dims": true, "fused_activation_function": ")" + activation + "\"}",
                     {x, w, bias}, out, real, activation);
      }
    }
  }
}

TEST(batch_matmul_steps) {
  std::mt19937 random(12);
  struct Shapes {
    std::vector<int> x, w, y;  // of batches
  };
  const Shapes shapes[] = {{{}, {}, {}},
                           {{3}, {3}, {3}},
                           {{2, 3}, {1, 3}, {2, 3}},
                           {{2, 1}, {2, 3}, {2, 3}},
                           {{2, 3}, {}, {2, 3}},
                           {{}, {2, 2}, {2, 2}},
                           {{1, 2}, {3, 1}, {3, 2}},
                           {{2, 2}, {1, 1}, {2, 2}},
                           {{0, 2}, {1, 2}, {0, 2}}};
  int round = 0;
  for (const std::string x_type : kData) {
    for (const std::string& w_type : weights_for(x_type)) {
      for (const Shapes& batches : shapes) {
        const bool x_turned = random() % 3 == 0, w_turned = ++round % 2;
        const int rows = 1 + static_cast<int>(random() % 9), depth = 1 + static_cast<int>(random() % 40);
        const int columns = 1 + static_cast<int>(random() % 40);
        const auto with = [](std::vector<int> shape, int a, int b, bool turned) {
          shape.push_back(turned ? b : a);
          shape.push_back(turned ? a : b);
          return shape;
        };
        const bool zeros = random() % 2;
        const Values x = random_operand(x_type, with(batches.x, rows, depth, x_turned), -1, zeros, random);
        const Values w = random_operand(w_type, with(batches.w, depth, columns, w_turned), -1, zeros, random);
        const std::vector<int> y_shape = with(batches.y, rows, columns, false);
        std::vector<Real> real;
        int64_t count = 1;
        for (int d : batches.y) count *= d;
        for (int64_t b = 0; b < count; ++b) {
          const auto batch_in = [&](const std::vector<int>& shape) {
            int64_t at = 0, step = 1, rest = b;
            for (size_t d = batches.y.size(); d-- > 0;) {
              const int64_t i = rest % batches.y[d];
              rest /= batches.y[d];
              const size_t missing = batches.y.size() - shape.size();
              const int size = d < missing ? 1 : shape[d - missing];
              at += (size == 1 ? 0 : i) * step;
              step *= size;
            }
            return at;
          };
          const int64_t x_at = batch_in(batches.x) * rows * depth,
                        w_at = batch_in(batches.w) * depth * columns;
          for (int m = 0; m < rows; ++m) {
            for (int n = 0; n < columns; ++n) {
              Real sum = 0;
              for (int k = 0; k < depth; ++k) {
                sum += x.value[static_cast<size_t>(x_at + (x_turned ? k * rows + m : m * depth + k))] *
                       w.value[static_cast<size_t>(w_at + (w_turned ? n * depth + k : k * columns + n))];
              }
              real.push_back(sum);
            }
          }
        }
        const Values out = output_for(x_type, y_shape, real, zeros, random);
        check_output("BATCH_MATMUL",
                     std::string("{\"adjoint_lhs\": ") + (x_turned ? "true" : "false") +
                         ", \"adjoint_rhs\": " + (w_turned ? "true" : "false") + "}",
                     {x, w}, out, real, "NONE");
      }
    }
  }
}

namespace {

void check_convolution(bool depthwise, const std::string& x_type, const std::string& w_type, int round,
                       std::mt19937& random) {
  const auto any = [&](int most) { return 1 + static_cast<int>(random() % static_cast<unsigned>(most)); };
  const int batch = any(2), height = 3 + any(7), width = 3 + any(7), channels = any(6), kernel_h = any(3),
            kernel_w = any(4);
  const int multiplier = any(5), stride_h = any(3), stride_w = any(3), dilation_h = any(2),
            dilation_w = any(2);
  const int reach_h = (kernel_h - 1) * dilation_h + 1, reach_w = (kernel_w - 1) * dilation_w + 1;
  const bool same = round % 2 || reach_h > height || reach_w > width, zeros = random() % 2;
  const int out_h = same ? (height + stride_h - 1) / stride_h : (height - reach_h) / stride_h + 1;
  const int out_w = same ? (width + stride_w - 1) / stride_w : (width - reach_w) / stride_w + 1;
  const int top = same ? std::max((out_h - 1) * stride_h + reach_h - height, 0) / 2 : 0;
  const int left = same ? std::max((out_w - 1) * stride_w + reach_w - width, 0) / 2 : 0;
  const int filters = depthwise ? channels * multiplier : any(30);
  const std::vector<int> w_shape = depthwise ? std::vector<int>{1, kernel_h, kernel_w, filters}
                                             : std::vector<int>{filters, kernel_h, kernel_w, channels};
  const int axis = is_real(w_type) || random() % 2 ? -1 : depthwise ? 3 : 0;
  const Values x = random_operand(x_type, {batch, height, width, channels}, -1, zeros, random);
  const Values w = random_operand(w_type, w_shape, axis, zeros, random);
  const Values bias = round % 3 ? random_operand(bias_dtype(x_type), {filters}, -1, false, random) : none();
  std::vector<Real> real;
  for (int b = 0; b < batch; ++b) {
    for (int i = 0; i < out_h; ++i) {
      for (int j = 0; j < out_w; ++j) {
        for (int n = 0; n < filters; ++n) {
          Real sum = bias.value.empty() ? 0 : bias.value[static_cast<size_t>(n)];
          for (int u = 0; u < kernel_h; ++u) {
            for (int v = 0; v < kernel_w; ++v) {
              const int row = i * stride_h - top + u * dilation_h,
                        column = j * stride_w - left + v * dilation_w;
              if (row < 0 || row >= height || column < 0 || column >= width) continue;
              for (int c = 0; c < channels; ++c) {
                if (depthwise && c != n / multiplier) continue;
                const int w_at = depthwise ? (u * kernel_w + v) * filters + n
                                           : ((n * kernel_h + u) * kernel_w + v) * channels + c;
                sum += x.value[static_cast<size_t>(((b * height + row) * width + column) * channels + c)] *
                       w.value[static_cast<size_t>(w_at)];
              }
            }
          }
          real.push_back(sum);
        }
      }
    }
  }
  const std::string activation = kActivations[random() % 4];
  const Values out = output_for(x_type, {batch, out_h, out_w, filters}, real, zeros, random);
  std::string options = std::string("{\"padding\": \"") + (same ? "SAME" : "VALID") +
                        "\", \"stride_h\": " + std::to_string(stride_h) +
                        ", \"stride_w\": " + std::to_string(stride_w) +
                        ", \"dilation_h_factor\": " + std::to_string(dilation_h) +
                        ", \"dilation_w_factor\": " + std::to_string(dilation_w);
  if (depthwise) options += ", \"depth_multiplier\": " + std::to_string(multiplier);
  check_output(depthwise ? "DEPTHWISE_CONV_2D" : "CONV_2D",
               options + ", \"fused_activation_function\": \"" + activation + "\"}", {x, w, bias}, out, real,
               activation);
}

}  // namespace

TEST(convolution_steps) {
  std::mt19937 random(13);
  for (const std::string x_type : kData) {
    for (const std::string& w_type : weights_for(x_type)) {
      for (int round = 0; round < 6; ++round) {
        check_convolution(false, x_type, w_type, round, random);
        check_convolution(true, x_type, w_type, round, random);
      }
    }
  }
}
