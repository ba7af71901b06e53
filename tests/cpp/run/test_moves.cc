// SPDX-License-Identifier: Apache-2.0
// Tensors in other shapes and orders, joined and taken apart, against index arithmetic element by element.
#include <algorithm>

#include "check.h"
#include "move_case.h"

namespace {

using namespace run;

SourceOf in_order(const Shape& y) {
  return [=](size_t, const Place& at) { return Source({0, element_at(y, at)}); };
}

}  // namespace

TEST(reshape) {
  check_moves("RESHAPE", [](std::mt19937& random) {
    const Shape x = random_shape(random, uniform(random, 0, 4));
    Shape y = {static_cast<int32_t>(count_of(x))};
    if (!x.empty()) y.assign(x.rbegin(), x.rend());
    const bool with_input = uniform(random, 0, 1) == 0;
    std::vector<Operand> in = {tensor(x)};
    Options options;
    if (with_input) {
      in.push_back(some_ints(random, wide(y)));
    } else if (uniform(random, 0, 1) == 0) {
      options["new_shape"] = y;
    }
    return MoveCase{in, {tensor(y)}, options, {0}, in_order(y)};
  });
}

TEST(squeeze_and_expand_dims) {
  check_moves("SQUEEZE", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 0, 3)), y = x;
    const int at = uniform(random, 0, static_cast<int>(x.size()));
    x.insert(x.begin() + at, 1);
    return MoveCase{{tensor(x)}, {tensor(y)}, {{"squeeze_dims", Shape{at}}}, {0}, in_order(y)};
  });
  check_moves("EXPAND_DIMS", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 0, 3)), y = x;
    const int at = uniform(random, 0, static_cast<int>(x.size()));
    y.insert(y.begin() + at, 1);
    return MoveCase{{tensor(x), some_ints(random, {at})}, {tensor(y)}, {}, {0}, in_order(y)};
  });
}

TEST(transpose) {
  const auto make = [](int largest_rank, int largest) {
    return [=](std::mt19937& random) {
      const Shape x = random_shape(random, uniform(random, 0, largest_rank), largest);
      std::vector<int64_t> order;
      for (size_t d = 0; d < x.size(); ++d) order.push_back(static_cast<int64_t>(d));
      std::shuffle(order.begin(), order.end(), random);
      Shape y;
      for (int64_t d : order) y.push_back(x[static_cast<size_t>(d)]);
      const SourceOf source = [=](size_t, const Place& at) {
        Place from(x.size());
        for (size_t d = 0; d < from.size(); ++d) from[static_cast<size_t>(order[d])] = at[d];
        return Source({0, element_at(x, from)});
      };
      return MoveCase{{tensor(x), some_ints(random, order)}, {tensor(y)}, {}, {0}, source};
    };
  };
  check_moves("TRANSPOSE", make(7, 3));
  check_moves("TRANSPOSE", make(3, 50), 3);  // squares and their rests
  check_moves("TRANSPOSE", make(2, 300), 1);
}

TEST(shape) {
  for (DType type : {DType::INT32, DType::INT64}) {
    for (DType dtype : {DType::FLOAT32, DType::INT4, DType::BOOL, DType::INT64, DType::GGML_Q4_0}) {
      const Operand x{dtype, {3, 0, 7, 1}};
      const auto result = OneStep("SHAPE", {x}, {Operand{type, {4}}}, {{"out_type", int64_t(type)}}).run();
      CHECK(result.ok());
      for (int64_t d = 0; d < 4; ++d)
        CHECK_EQ(static_cast<int64_t>(get(result.value()[0], type, d)),
                 int64_t{x.shape[static_cast<size_t>(d)]});
    }
  }
}

TEST(concatenation) {
  check_moves("CONCATENATION", [](std::mt19937& random) {
    Shape y = random_shape(random, uniform(random, 1, 4));
    const auto axis = static_cast<size_t>(uniform(random, 0, static_cast<int>(y.size()) - 1));
    std::vector<Operand> in;
    std::vector<size_t> data;
    std::vector<int64_t> first;
    int64_t total = 0;
    for (int i = uniform(random, 1, 4); i > 0; --i) {
      Shape part = y;
      part[axis] = uniform(random, 0, 4);
      first.push_back(total);
      total += part[axis];
      data.push_back(in.size());
      in.push_back(tensor(part));
    }
    y[axis] = static_cast<int32_t>(total);
    const SourceOf source = [=](size_t, const Place& at) {
      size_t i = in.size() - 1;
      while (first[i] > at[axis] || in[i].shape[axis] == 0) --i;
      Place from = at;
      from[axis] -= first[i];
      return Source({i, element_at(in[i].shape, from)});
    };
    const int64_t named = static_cast<int64_t>(axis) - (uniform(random, 0, 1) == 0 ? 0 : int64_t(y.size()));
    return MoveCase{in, {tensor(y)}, {{"axis", named}}, data, source};
  });
}

TEST(split) {
  check_moves("SPLIT", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 1, 4));
    const auto axis = static_cast<size_t>(uniform(random, 0, static_cast<int>(x.size()) - 1));
    const int parts = uniform(random, 1, 4), each = uniform(random, 0, 3);
    x[axis] = parts * each;
    Shape y = x;
    y[axis] = each;
    const SourceOf source = [=](size_t k, const Place& at) {
      Place from = at;
      from[axis] += static_cast<int64_t>(k) * each;
      return Source({1, element_at(x, from)});
    };
    return MoveCase{{some_ints(random, {static_cast<int64_t>(axis)}), tensor(x)},
                    std::vector<Operand>(static_cast<size_t>(parts), tensor(y)),
                    {{"num_splits", int64_t{parts}}},
                    {1},
                    source};
  });
  check_moves("SPLIT_V", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 1, 4));
    const auto axis = static_cast<size_t>(uniform(random, 0, static_cast<int>(x.size()) - 1));
    std::vector<int64_t> sizes, first;
    std::vector<Operand> out;
    int64_t total = 0;
    for (int i = uniform(random, 1, 4); i > 0; --i) {
      first.push_back(total);
      sizes.push_back(uniform(random, 0, 3));
      total += sizes.back();
      out.push_back(tensor(x));
      out.back().shape[axis] = static_cast<int32_t>(sizes.back());
    }
    x[axis] = static_cast<int32_t>(total);
    if (uniform(random, 0, 1) == 0) sizes[0] = -1;
    const SourceOf source = [=](size_t k, const Place& at) {
      Place from = at;
      from[axis] += first[k];
      return Source({0, element_at(x, from)});
    };
    const int64_t named = static_cast<int64_t>(axis) - (uniform(random, 0, 1) == 0 ? 0 : int64_t(x.size()));
    return MoveCase{{tensor(x), some_ints(random, sizes), some_ints(random, {named})},
                    out,
                    {{"num_splits", static_cast<int64_t>(out.size())}},
                    {0},
                    source};
  });
}

TEST(pack_and_unpack) {
  check_moves("PACK", [](std::mt19937& random) {
    const Shape x = random_shape(random, uniform(random, 0, 3));
    const int parts = uniform(random, 1, 4), axis = uniform(random, 0, static_cast<int>(x.size()));
    Shape y = x;
    y.insert(y.begin() + axis, parts);
    std::vector<size_t> data;
    for (int i = 0; i < parts; ++i) data.push_back(static_cast<size_t>(i));
    const SourceOf source = [=](size_t, Place at) {
      const auto i = static_cast<size_t>(at[static_cast<size_t>(axis)]);
      at.erase(at.begin() + axis);
      return Source({i, element_at(x, at)});
    };
    return MoveCase{std::vector<Operand>(static_cast<size_t>(parts), tensor(x)),
                    {tensor(y)},
                    {{"axis", int64_t{axis}}, {"values_count", int64_t{parts}}},
                    data,
                    source};
  });
  check_moves("UNPACK", [](std::mt19937& random) {
    const Shape y = random_shape(random, uniform(random, 0, 3));
    const int parts = uniform(random, 1, 4), axis = uniform(random, 0, static_cast<int>(y.size()));
    Shape x = y;
    x.insert(x.begin() + axis, parts);
    const SourceOf source = [=](size_t k, Place at) {
      at.insert(at.begin() + axis, static_cast<int64_t>(k));
      return Source({0, element_at(x, at)});
    };
    return MoveCase{{tensor(x)},
                    std::vector<Operand>(static_cast<size_t>(parts), tensor(y)),
                    {{"axis", int64_t{axis}}, {"num", int64_t{parts}}},
                    {0},
                    source};
  });
}
