// SPDX-License-Identifier: Apache-2.0
// Values chosen by an index or a condition, and made from few, against index arithmetic element by element.
#include <algorithm>

#include "check.h"
#include "move_case.h"
#include "pyquant/kernels.h"

namespace {

using namespace run;

/// Random indices below `limit` in a shape (0 of them where there is nothing to choose from).
struct Index {
  Operand operand;
  std::vector<int64_t> values;
};
Index random_index(std::mt19937& random, const Shape& shape, int limit) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < count_of(shape); ++i) values.push_back(uniform(random, 0, limit - 1));
  const bool constant = uniform(random, 0, 1) == 0 && !values.empty();
  return {ints(values, shape, constant, random_int(random)), values};
}

bool mentions(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    if (text.find(part) == std::string::npos) return false;
  }
  return true;
}

}  // namespace

TEST(gather) {
  check_moves("GATHER", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 1, 4));
    const auto axis = static_cast<size_t>(uniform(random, 0, static_cast<int>(x.size()) - 1));
    x[axis] = std::max(x[axis], 1);
    const auto batch = static_cast<size_t>(uniform(random, 0, static_cast<int>(axis)));
    Shape shape(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(batch));
    for (int32_t dim : random_shape(random, uniform(random, 0, 2))) shape.push_back(dim);
    const Index index = random_index(random, shape, x[axis]);
    Shape y(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(axis));
    y.insert(y.end(), shape.begin() + static_cast<std::ptrdiff_t>(batch), shape.end());
    y.insert(y.end(), x.begin() + static_cast<std::ptrdiff_t>(axis) + 1, x.end());
    const SourceOf source = [=](size_t, const Place& at) {
      const auto chosen = at.begin() + static_cast<std::ptrdiff_t>(axis);
      const auto behind = chosen + static_cast<std::ptrdiff_t>(shape.size() - batch);
      Place where(at.begin(), at.begin() + static_cast<std::ptrdiff_t>(batch));
      where.insert(where.end(), chosen, behind);
      Place from(at.begin(), chosen);
      from.push_back(index.values[static_cast<size_t>(element_at(shape, where))]);
      from.insert(from.end(), behind, at.end());
      return Source({0, element_at(x, from)});
    };
    return MoveCase{{tensor(x), index.operand},
                    {tensor(y)},
                    {{"axis", static_cast<int64_t>(axis)}, {"batch_dims", static_cast<int64_t>(batch)}},
                    {0},
                    source};
  });
}

TEST(gather_of_blocks_equals_the_decoded_table) {
  std::mt19937 random(7);
  for (DType dtype : {DType::GGML_Q4_0, DType::GGML_Q8_0}) {
    const int bits = dtype == DType::GGML_Q4_0 ? 4 : 8;
    // Rows of whole blocks, of parts of blocks, of some dimensions; with a dimension before the axis.
    for (const Shape& x : {Shape{9, 64}, Shape{7, 24}, Shape{5, 3, 11}, Shape{2, 6, 32}, Shape{4, 100}}) {
      const int64_t axis = x.size() == 3 && x[2] == 32 ? 1 : 0;
      const int64_t blocks = (count_of(x) + 31) / 32;
      std::vector<float> values(static_cast<size_t>(32 * blocks));
      std::normal_distribution<float> normal;
      for (float& v : values) v = normal(random);
      Operand table{dtype, x};
      table.bytes.resize(static_cast<size_t>(blocks * pyquant::kernels::block_bytes(bits)));
      pyquant::kernels::quantize_blocks(values.data(), blocks, bits, table.bytes.data());
      pyquant::kernels::dequantize_blocks(table.bytes.data(), blocks, bits, values.data());
      table.constant = true;
      const Index index = random_index(random, {3, 5}, x[static_cast<size_t>(axis)]);
      Shape y(x.begin(), x.begin() + axis);
      y.insert(y.end(), {3, 5});
      y.insert(y.end(), x.begin() + axis + 1, x.end());
      const OneStep step("GATHER", {table, index.operand}, {Operand{DType::FLOAT32, y}}, {{"axis", axis}});
      CHECK_EQ(step.faults(), "");
      const auto result = step.run(2);
      CHECK(result.ok());
      for (int64_t i = 0; i < count_of(y); ++i) {
        Place at = place_of(y, i);
        const auto chosen = at.begin() + axis;
        const int64_t row = index.values[static_cast<size_t>(chosen[0] * 5 + chosen[1])];
        at.erase(chosen + 1);
        at[static_cast<size_t>(axis)] = row;
        float got;
        std::memcpy(&got, &result.value()[0][static_cast<size_t>(4 * i)], 4);
        CHECK_BITS(got, values[static_cast<size_t>(element_at(x, at))]);
      }
    }
  }
}

TEST(gather_refuses_indices_outside_the_table) {
  std::mt19937 random(3);
  for (DType dtype : {DType::INT8, DType::INT4, DType::GGML_Q4_0, DType::FLOAT32}) {
    for (int64_t bad : {int64_t{-1}, int64_t{4}, INT64_MIN, INT64_MAX, int64_t{1} << 32}) {
      for (DType type : {DType::INT32, DType::INT64}) {
        if (type == DType::INT32 && bad != static_cast<int32_t>(bad)) continue;
        Operand table{dtype, {4, 32}};
        table.bytes = random_bytes(random, dtype, table.shape);
        const bool decodes = dtype == DType::GGML_Q4_0;
        const auto result = OneStep("GATHER", {table, ints({0, 3, 1, bad}, {2, 2}, false, type)},
                                    {Operand{decodes ? DType::FLOAT32 : dtype, {2, 2, 32}}})
                                .run();
        CHECK(!result.ok());
        const std::string text = result.fault().text();
        CHECK_MSG(mentions(text, {"E_RUN_VALUE", "[1, 1]", std::to_string(bad).c_str(), "0 to 3", "t1"}),
                  text);
      }
    }
  }
}

TEST(gather_nd) {
  check_moves("GATHER_ND", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 0, 4));
    const auto width = static_cast<size_t>(uniform(random, 0, static_cast<int>(x.size())));
    for (size_t d = 0; d < width; ++d) x[d] = std::max(x[d], 1);
    Shape shape = random_shape(random, uniform(random, 0, 2));
    const Shape tuples = shape;
    shape.push_back(static_cast<int32_t>(width));
    std::vector<int64_t> values;
    for (int64_t t = 0; t < count_of(tuples); ++t) {
      for (size_t d = 0; d < width; ++d) values.push_back(uniform(random, 0, x[d] - 1));
    }
    Shape y = tuples;
    y.insert(y.end(), x.begin() + static_cast<std::ptrdiff_t>(width), x.end());
    const SourceOf source = [=](size_t, const Place& at) {
      const auto behind = at.begin() + static_cast<std::ptrdiff_t>(tuples.size());
      const auto t = static_cast<size_t>(element_at(tuples, Place(at.begin(), behind)));
      Place from(values.begin() + static_cast<std::ptrdiff_t>(t * width),
                 values.begin() + static_cast<std::ptrdiff_t>((t + 1) * width));
      from.insert(from.end(), behind, at.end());
      return Source({0, element_at(x, from)});
    };
    const bool constant = uniform(random, 0, 1) == 0 && !values.empty();
    return MoveCase{
        {tensor(x), ints(values, shape, constant, random_int(random))}, {tensor(y)}, {}, {0}, source};
  });
  Operand x{DType::FLOAT32, {2, 3}};
  x.bytes.resize(24);
  const auto result =
      OneStep("GATHER_ND", {x, ints({1, 2, 1, 3}, {2, 2}, false)}, {Operand{DType::FLOAT32, {2}}}).run();
  CHECK(!result.ok());
  CHECK_MSG(mentions(result.fault().text(), {"E_RUN_VALUE", "[1, 1] is 3", "0 to 2 for dimension 1"}),
            result.fault().text());
}

TEST(select) {
  for (const char* op : {"SELECT", "SELECT_V2"}) {
    check_moves(op, [](std::mt19937& random) {
      const Shape y = random_shape(random, uniform(random, 0, 4));
      const auto shrunk = [&](bool whole) {
        Shape t = y;
        for (int32_t& dim : t) dim = whole || uniform(random, 0, 1) == 0 ? dim : 1;
        if (!whole && !t.empty() && t[0] == 1 && y[0] == 1) t.erase(t.begin());
        return t;
      };
      Operand condition{DType::BOOL, shrunk(uniform(random, 0, 2) == 0)};
      for (int64_t i = 0; i < count_of(condition.shape); ++i)
        condition.bytes.push_back(static_cast<uint8_t>(uniform(random, 0, 2)));
      // The output is what all broadcast to: one operand is whole.
      const Shape a = shrunk(true), b = shrunk(false);
      const auto source_in = [=](const Shape& shape, const Place& at) {
        Place from(at.end() - static_cast<std::ptrdiff_t>(shape.size()), at.end());
        for (size_t d = 0; d < shape.size(); ++d) from[d] = shape[d] == 1 ? 0 : from[d];
        return element_at(shape, from);
      };
      const SourceOf source = [=](size_t, const Place& at) {
        const bool first = condition.bytes[static_cast<size_t>(source_in(condition.shape, at))] != 0;
        return first ? Source({1, source_in(a, at)}) : Source({2, source_in(b, at)});
      };
      return MoveCase{{condition, tensor(a), tensor(b)}, {tensor(y)}, {}, {1, 2}, source};
    });
  }
}

TEST(one_hot) {
  check_moves("ONE_HOT", [](std::mt19937& random) {
    const Shape x = random_shape(random, uniform(random, 0, 3));
    const int depth = uniform(random, 0, 4), axis = uniform(random, 0, static_cast<int>(x.size()));
    std::vector<int64_t> values;
    for (int64_t i = 0; i < count_of(x); ++i) values.push_back(uniform(random, -2, depth + 1));
    Shape y = x;
    y.insert(y.begin() + axis, depth);
    const SourceOf source = [=](size_t, Place at) {
      const int64_t place = at[static_cast<size_t>(axis)];
      at.erase(at.begin() + axis);
      return Source({values[static_cast<size_t>(element_at(x, at))] == place ? 2u : 3u, 0});
    };
    const bool last = axis == static_cast<int>(x.size()) && uniform(random, 0, 1) == 0;
    return MoveCase{
        {ints(values, x, false, random_int(random)),
         ints({depth}, Shape{}, uniform(random, 0, 1) == 0, random_int(random)), tensor({}), tensor({1})},
        {tensor(y)},
        {{"axis", last ? int64_t{-1} : int64_t{axis}}},
        {2, 3},
        source};
  });
}

TEST(fill) {
  check_moves("FILL", [](std::mt19937& random) {
    const Shape y = random_shape(random, uniform(random, 0, 3), 20);
    return MoveCase{{some_ints(random, wide(y)), tensor({})}, {tensor(y)}, {}, {1}, [](size_t, const Place&) {
                      return Source({1, 0});
                    }};
  });
}

TEST(range_of_integers) {
  std::mt19937 random(11);
  for (int round = 0; round < 400; ++round) {
    const DType type = random_int(random);
    const int64_t base = round % 4 == 0 ? (type == DType::INT32 ? INT32_MAX - 60 : INT64_MAX - 60) : 0;
    const int64_t start = base + uniform(random, -30, 30), limit = base + uniform(random, -30, 30);
    const int64_t step = uniform(random, 0, 1) == 0 ? uniform(random, 1, 7) : -uniform(random, 1, 7);
    std::vector<int64_t> expected;
    for (int64_t v = start; step > 0 ? v < limit : v > limit; v += step) expected.push_back(v);
    const auto n = static_cast<int32_t>(expected.size());
    const auto scalar = [&](int64_t v) { return ints({v}, Shape{}, false, type); };
    const auto run_with = [&](int32_t size) {
      return OneStep("RANGE", {scalar(start), scalar(limit), scalar(step)}, {Operand{type, {size}}}).run();
    };
    const auto result = run_with(n);
    CHECK(result.ok());
    for (int64_t i = 0; i < n; ++i)
      CHECK_EQ(signed_of(get(result.value()[0], type, i), type), expected[static_cast<size_t>(i)]);
    const auto other = run_with(n + 1);
    CHECK(!other.ok() && other.fault().code == Code::E_RUN_SHAPE);
    if (n > 0) CHECK(!run_with(n - 1).ok());
  }
  const auto still = OneStep("RANGE", {ints({1}, Shape{}), ints({5}, Shape{}), ints({0}, Shape{})},
                             {Operand{DType::INT32, {4}}})
                         .run();
  CHECK(!still.ok() && still.fault().code == Code::E_RUN_VALUE);
  // The whole of int64.
  const auto far = OneStep("RANGE",
                           {ints({INT64_MIN}, Shape{}, false, DType::INT64),
                            ints({INT64_MAX}, Shape{}, false, DType::INT64),
                            ints({INT64_MAX}, Shape{}, false, DType::INT64)},
                           {Operand{DType::INT64, {3}}})
                       .run();
  CHECK(far.ok());
  CHECK_EQ(static_cast<int64_t>(get(far.value()[0], DType::INT64, 2)), INT64_MAX - 1);
}

TEST(range_of_floats) {
  const auto scalar = [](float v) {
    Operand t{DType::FLOAT32, {}};
    t.bytes.resize(4);
    std::memcpy(t.bytes.data(), &v, 4);
    return t;
  };
  const auto run_with = [&](float start, float limit, float step, int32_t n) {
    return OneStep("RANGE", {scalar(start), scalar(limit), scalar(step)}, {Operand{DType::FLOAT32, {n}}})
        .run();
  };
  const auto tenths = run_with(0.0f, 1.0f, 0.1f, 10);
  CHECK(tenths.ok());
  for (int i = 0; i < 10; ++i) {
    float got;
    std::memcpy(&got, &tenths.value()[0][static_cast<size_t>(4 * i)], 4);
    CHECK_BITS(got, static_cast<float>(i * static_cast<double>(0.1f)));
  }
  CHECK(run_with(5.0f, 0.0f, -2.0f, 3).ok());
  CHECK(run_with(5.0f, 0.0f, 2.0f, 0).ok());
  CHECK(!run_with(0.0f, 1.0f, 0.1f, 9).ok());
  CHECK(!run_with(0.0f, 1.0f, 0.0f, 9).ok());
  CHECK(!run_with(0.0f, std::nanf(""), 1.0f, 9).ok());
  CHECK(!run_with(0.0f, std::numeric_limits<float>::infinity(), 1.0f, 9).ok());
}

TEST(values_that_give_another_shape_are_refused) {
  std::mt19937 random(5);
  const auto run_with = [&](const std::string& op, const Shape& x, const std::vector<Operand>& more,
                            const Shape& y, bool first = true) {
    Operand data{DType::INT8, x};
    data.bytes = random_bytes(random, data.dtype, x);
    std::vector<Operand> in = more;
    in.insert(first ? in.begin() : in.end(), data);
    const auto result = OneStep(op, in, {Operand{DType::INT8, y}}).run();
    return result.ok() ? std::string("ok") : result.fault().text();
  };
  const auto live = [](const std::vector<int64_t>& values) { return ints(values, false); };
  const auto check_text = [&](const std::string& text, std::initializer_list<const char*> parts) {
    CHECK_MSG(mentions(text, parts), text);
  };
  check_text(run_with("SLICE", {5, 4}, {live({1, 0}), live({3, 4})}, {2, 4}),
             {"E_RUN_SHAPE", "[1, 0]", "[3, 4]", "expected [2, 4]"});
  check_text(run_with("SLICE", {5, 4}, {live({4, 0}), live({2, 4})}, {2, 4}), {"E_RUN_VALUE", "lies within"});
  check_text(run_with("SLICE", {5, 4}, {live({-1, 0}), live({2, 4})}, {2, 4}), {"E_RUN_VALUE"});
  check_text(run_with("TRANSPOSE", {2, 3}, {live({0, 1})}, {3, 2}), {"E_RUN_SHAPE"});
  check_text(run_with("TRANSPOSE", {2, 2}, {live({0, 0})}, {2, 2}), {"E_RUN_VALUE", "permutation"});
  check_text(run_with("PAD", {2}, {ints({1, 1 << 30}, Shape{1, 2}, false)}, {4}), {"E_RUN_SHAPE"});
  check_text(run_with("TILE", {2}, {live({3})}, {4}), {"E_RUN_SHAPE"});
  check_text(run_with("BROADCAST_TO", {1}, {live({5})}, {4}), {"E_RUN_SHAPE"});
  check_text(run_with("FILL", {}, {live({5})}, {4}, false), {"E_RUN_SHAPE", "[5]", "[4]"});
  check_text(run_with("RESHAPE", {4}, {live({2, 2})}, {4}), {"E_RUN_SHAPE"});
  check_text(run_with("EXPAND_DIMS", {4}, {live({0})}, {4, 1}), {"E_RUN_SHAPE"});
  check_text(run_with("STRIDED_SLICE", {5}, {live({0}), live({5}), live({2})}, {2}), {"E_RUN_SHAPE"});
  check_text(run_with("STRIDED_SLICE", {5}, {live({0}), live({5}), live({0})}, {2}), {"E_RUN_VALUE"});
  check_text(run_with("SPLIT", {4, 2}, {live({1})}, {4, 2}, false), {"ok"});
}
