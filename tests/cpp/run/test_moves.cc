// SPDX-License-Identifier: Apache-2.0
// Operators that move values, in every type, with equal and with different grids, against index arithmetic
// element by element.
#include <algorithm>
#include <functional>
#include <optional>

#include "check.h"
#include "values.h"

namespace {

using namespace run;

constexpr DType kTypes[] = {DType::FLOAT32, DType::FLOAT16, DType::BFLOAT16, DType::INT4,
                            DType::UINT4,   DType::INT8,    DType::UINT8,    DType::INT16,
                            DType::INT32,   DType::INT64,   DType::BOOL};

enum class GridCase { None, Same, Different, ByChannel };
constexpr GridCase kGrids[] = {GridCase::None, GridCase::Same, GridCase::Different, GridCase::ByChannel};

void give_grid(std::mt19937& random, Operand& t, bool by_channel) {
  const auto* type = pyquant::circle::info(t.dtype);
  size_t channels = 1;
  if (by_channel && !t.shape.empty()) {
    t.axis = uniform(random, 0, static_cast<int>(t.shape.size()) - 1);
    channels = static_cast<size_t>(std::max(t.shape[static_cast<size_t>(t.axis)], 1));
  }
  if (by_channel && count_of(t.shape) == 0) channels = 1;
  t.scale.clear();
  t.zero_point.clear();
  for (size_t c = 0; c < channels; ++c) {
    // Powers of two now and then: ties.
    t.scale.push_back(uniform(random, 0, 1) == 0 ? std::ldexp(1.0f, uniform(random, -3, 3))
                                                 : std::ldexp(1.0f + 1e-4f * uniform(random, 0, 9999), -4));
    t.zero_point.push_back(uniform(random, std::max<int>(static_cast<int>(type->lowest), -300),
                                   std::min<int64_t>(type->highest, 300)));
  }
}

/// Where an element comes from: an input's element, or 0 where there is none.
using Source = std::optional<std::pair<size_t, int64_t>>;
using SourceOf = std::function<Source(size_t k, const Place& place)>;

/// Gives the data operands values and grids, runs the step, compares every element. `data`: which inputs are.
void check_one(const std::string& op, std::vector<Operand> in, std::vector<Operand> out,
               const Options& options, const std::vector<size_t>& data, DType dtype, GridCase grids,
               std::mt19937& random, const SourceOf& source) {
  Operand one{dtype, {}};
  if (grids != GridCase::None) give_grid(random, one, false);
  const auto grid = [&](Operand& t) {
    t.dtype = dtype;
    t.scale = one.scale;
    t.zero_point = one.zero_point;
    if (grids == GridCase::Different || grids == GridCase::ByChannel)
      give_grid(random, t, grids == GridCase::ByChannel && uniform(random, 0, 2) > 0);
  };
  for (size_t i : data) {
    grid(in[i]);
    in[i].bytes = random_bytes(random, dtype, in[i].shape);
    in[i].constant = uniform(random, 0, 2) == 0 && !in[i].bytes.empty();
  }
  for (Operand& t : out) grid(t);
  std::string shapes;
  for (const Operand& t : in) shapes += pyquant::circle::shape_text(t.shape) + " ";
  for (const Operand& t : out) shapes += "-> " + pyquant::circle::shape_text(t.shape) + " ";
  const check::Context here(op, " ", pyquant::circle::name_of(dtype), " grids ", static_cast<int>(grids), " ",
                            shapes);
  const OneStep step(op, in, out, options);
  CHECK_EQ(step.faults(), "");
  const auto result = step.run(uniform(random, 1, 2));
  CHECK_MSG(result.ok(), result.ok() ? "" : result.fault().text());
  if (!result.ok()) return;
  for (size_t k = 0; k < out.size(); ++k) {
    const Operand& y = out[k];
    const std::vector<uint8_t>& bytes = result.value()[k];
    for (int64_t i = 0; i < count_of(y.shape); ++i) {
      const Source from = source(k, place_of(y.shape, i));
      const Cell to = cell_of(y, i);
      uint64_t expected = masked(to.zero_point, dtype);
      if (from) {
        const Operand& x = in[from->first];
        expected = get(x.bytes, dtype, from->second);
        if (!x.scale.empty())
          expected = masked(changed(signed_of(expected, dtype), cell_of(x, from->second), to, dtype), dtype);
      }
      CHECK_EQ(get(bytes, dtype, i), expected);
    }
    if (bits_of(dtype) == 4 && count_of(y.shape) % 2 != 0) CHECK_EQ(bytes.back() >> 4, 0);
  }
}

/// All types and grids; `make` gives shapes, integers and the reference of one random case.
struct Case {
  std::vector<Operand> in, out;
  Options options = {};
  std::vector<size_t> data = {0};
  SourceOf source;
};
void check_all(const std::string& op, const std::function<Case(std::mt19937&)>& make, int rounds = 12) {
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(op)));
  for (DType dtype : kTypes) {
    for (GridCase grids : kGrids) {
      if (grids != GridCase::None && !pyquant::circle::is_quantized(dtype) && dtype != DType::INT32) continue;
      for (int round = 0; round < rounds; ++round) {
        const Case c = make(random);
        check_one(op, c.in, c.out, c.options, c.data, dtype, grids, random, c.source);
      }
    }
  }
}

Operand tensor(const Shape& shape) { return {DType::FLOAT32, shape}; }
std::vector<int64_t> wide(const Shape& shape) { return {shape.begin(), shape.end()}; }
DType random_int(std::mt19937& random) { return uniform(random, 0, 1) == 0 ? DType::INT32 : DType::INT64; }
/// Integers that are constant or not.
Operand some_ints(std::mt19937& random, const std::vector<int64_t>& values) {
  return ints(values, uniform(random, 0, 1) == 0 && !values.empty(), random_int(random));
}

SourceOf in_order(const Shape& y) {
  return [=](size_t, const Place& at) { return Source({0, element_at(y, at)}); };
}

}  // namespace

TEST(reshape) {
  check_all("RESHAPE", [](std::mt19937& random) {
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
    return Case{in, {tensor(y)}, options, {0}, in_order(y)};
  });
}

TEST(squeeze_and_expand_dims) {
  check_all("SQUEEZE", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 0, 3)), y = x;
    const int at = uniform(random, 0, static_cast<int>(x.size()));
    x.insert(x.begin() + at, 1);
    return Case{{tensor(x)}, {tensor(y)}, {{"squeeze_dims", Shape{at}}}, {0}, in_order(y)};
  });
  check_all("EXPAND_DIMS", [](std::mt19937& random) {
    Shape x = random_shape(random, uniform(random, 0, 3)), y = x;
    const int at = uniform(random, 0, static_cast<int>(x.size()));
    y.insert(y.begin() + at, 1);
    return Case{{tensor(x), some_ints(random, {at})}, {tensor(y)}, {}, {0}, in_order(y)};
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
      return Case{{tensor(x), some_ints(random, order)}, {tensor(y)}, {}, {0}, source};
    };
  };
  check_all("TRANSPOSE", make(7, 3));
  check_all("TRANSPOSE", make(3, 50), 3);  // squares and their rests
  check_all("TRANSPOSE", make(2, 300), 1);
}

TEST(shape) {
  for (DType type : {DType::INT32, DType::INT64}) {
    for (DType dtype : kTypes) {
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
  check_all("CONCATENATION", [](std::mt19937& random) {
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
    return Case{in, {tensor(y)}, {{"axis", named}}, data, source};
  });
}

TEST(split) {
  check_all("SPLIT", [](std::mt19937& random) {
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
    return Case{{some_ints(random, {static_cast<int64_t>(axis)}), tensor(x)},
                std::vector<Operand>(static_cast<size_t>(parts), tensor(y)),
                {{"num_splits", int64_t{parts}}},
                {1},
                source};
  });
  check_all("SPLIT_V", [](std::mt19937& random) {
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
    return Case{{tensor(x), some_ints(random, sizes), some_ints(random, {named})},
                out,
                {{"num_splits", static_cast<int64_t>(out.size())}},
                {0},
                source};
  });
}

TEST(pack_and_unpack) {
  check_all("PACK", [](std::mt19937& random) {
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
    return Case{std::vector<Operand>(static_cast<size_t>(parts), tensor(x)),
                {tensor(y)},
                {{"axis", int64_t{axis}}, {"values_count", int64_t{parts}}},
                data,
                source};
  });
  check_all("UNPACK", [](std::mt19937& random) {
    const Shape y = random_shape(random, uniform(random, 0, 3));
    const int parts = uniform(random, 1, 4), axis = uniform(random, 0, static_cast<int>(y.size()));
    Shape x = y;
    x.insert(x.begin() + axis, parts);
    const SourceOf source = [=](size_t k, Place at) {
      at.insert(at.begin() + axis, static_cast<int64_t>(k));
      return Source({0, element_at(x, at)});
    };
    return Case{{tensor(x)},
                std::vector<Operand>(static_cast<size_t>(parts), tensor(y)),
                {{"axis", int64_t{axis}}, {"num", int64_t{parts}}},
                {0},
                source};
  });
}

TEST(slice) {
  check_all("SLICE", [](std::mt19937& random) {
    const Shape x = random_shape(random, uniform(random, 0, 4), 7);
    std::vector<int64_t> begin, size;
    Shape y;
    for (int32_t dim : x) {
      begin.push_back(uniform(random, 0, dim));
      y.push_back(uniform(random, 0, dim - static_cast<int>(begin.back())));
      const bool rest = begin.back() + y.back() == dim && uniform(random, 0, 1) == 0;
      size.push_back(rest ? -1 : y.back());
    }
    const SourceOf source = [=](size_t, Place at) {
      for (size_t d = 0; d < at.size(); ++d) at[d] += begin[d];
      return Source({0, element_at(x, at)});
    };
    return Case{{tensor(x), some_ints(random, begin), some_ints(random, size)}, {tensor(y)}, {}, {0}, source};
  });
}

TEST(strided_slice) {
  check_all("STRIDED_SLICE", [](std::mt19937& random) {
    const Shape x = random_shape(random, uniform(random, 1, 4), 7);
    std::vector<int64_t> begin, end, step;
    int64_t begin_mask = 0, end_mask = 0, shrink = 0;
    // For each dimension of x the elements that are taken; none where it vanishes.
    std::vector<std::vector<int64_t>> taken;
    std::vector<bool> gone;
    Shape y;
    for (size_t d = 0; d < x.size(); ++d) {
      const int64_t n = x[d];
      std::vector<int64_t> list;
      bool vanishes = false;
      if (d >= x.size() - 1 && uniform(random, 0, 2) == 0) {
        for (int64_t i = 0; i < n; ++i) list.push_back(i);  // not named
      } else if (n > 0 && uniform(random, 0, 4) == 0) {
        const int64_t at = uniform(random, 0, static_cast<int>(n) - 1);
        begin.push_back(uniform(random, 0, 1) == 0 ? at : at - n);
        end.push_back(0);
        step.push_back(1);
        shrink |= int64_t{1} << d;
        list = {at};
        vanishes = true;
      } else {
        const int64_t by = uniform(random, 0, 1) == 0 ? uniform(random, 1, 3) : -uniform(random, 1, 3);
        int64_t b = uniform(random, -9, 9), e = uniform(random, -9, 9);
        begin.push_back(b);
        end.push_back(e);
        step.push_back(by);
        const bool no_begin = uniform(random, 0, 3) == 0, no_end = uniform(random, 0, 3) == 0;
        if (no_begin) begin_mask |= int64_t{1} << d;
        if (no_end) end_mask |= int64_t{1} << d;
        // As Python does it.
        if (b < 0) b += n;
        if (e < 0) e += n;
        if (no_begin) b = by > 0 ? 0 : n - 1;
        if (no_end) e = by > 0 ? n : -1;
        b = by > 0 ? std::clamp<int64_t>(b, 0, n) : std::clamp<int64_t>(b, -1, n - 1);
        e = by > 0 ? std::clamp<int64_t>(e, 0, n) : std::clamp<int64_t>(e, -1, n - 1);
        for (int64_t i = b; by > 0 ? i < e : i > e; i += by) list.push_back(i);
      }
      if (!vanishes) y.push_back(static_cast<int32_t>(list.size()));
      taken.push_back(list);
      gone.push_back(vanishes);
    }
    const SourceOf source = [=](size_t, const Place& at) {
      Place from;
      size_t k = 0;
      for (size_t d = 0; d < x.size(); ++d)
        from.push_back(taken[d][gone[d] ? 0 : static_cast<size_t>(at[k++])]);
      return Source({0, element_at(x, from)});
    };
    return Case{{tensor(x), some_ints(random, begin), some_ints(random, end), some_ints(random, step)},
                {tensor(y)},
                {{"begin_mask", begin_mask}, {"end_mask", end_mask}, {"shrink_axis_mask", shrink}},
                {0},
                source};
  });
}

TEST(pad) {
  for (const char* op : {"PAD", "PADV2"}) {
    const bool valued = std::string(op) == "PADV2";
    check_all(op, [=](std::mt19937& random) {
      const Shape x = random_shape(random, uniform(random, 1, 4));
      std::vector<int64_t> padding;
      Shape y;
      for (int32_t dim : x) {
        padding.push_back(uniform(random, 0, 3));
        padding.push_back(uniform(random, 0, 3));
        y.push_back(static_cast<int32_t>(dim + padding.end()[-2] + padding.back()));
      }
      Operand amounts = some_ints(random, padding);
      amounts.shape = {static_cast<int32_t>(x.size()), 2};
      std::vector<Operand> in = {tensor(x), amounts};
      if (valued) in.push_back(tensor(uniform(random, 0, 1) == 0 ? Shape{} : Shape{1}));
      const SourceOf source = [=](size_t, Place at) -> Source {
        bool inside = true;
        for (size_t d = 0; d < at.size(); ++d) {
          at[d] -= padding[2 * d];
          inside &= at[d] >= 0 && at[d] < x[d];
        }
        if (inside) return Source({0, element_at(x, at)});
        return valued ? Source({2, 0}) : std::nullopt;
      };
      return Case{in, {tensor(y)}, {}, valued ? std::vector<size_t>{0, 2} : std::vector<size_t>{0}, source};
    });
  }
}

TEST(broadcast_to_and_tile) {
  check_all("BROADCAST_TO", [](std::mt19937& random) {
    const Shape y = random_shape(random, uniform(random, 0, 4), 9);
    Shape x(y.begin() + uniform(random, 0, static_cast<int>(y.size())), y.end());
    for (int32_t& dim : x) dim = uniform(random, 0, 1) == 0 ? 1 : dim;
    const SourceOf source = [=](size_t, const Place& at) {
      Place from(at.end() - static_cast<std::ptrdiff_t>(x.size()), at.end());
      for (size_t d = 0; d < x.size(); ++d) from[d] = x[d] == 1 ? 0 : from[d];
      return Source({0, element_at(x, from)});
    };
    return Case{{tensor(x), some_ints(random, wide(y))}, {tensor(y)}, {}, {0}, source};
  });
  check_all("TILE", [](std::mt19937& random) {
    const Shape x = random_shape(random, uniform(random, 0, 4));
    Shape y;
    std::vector<int64_t> copies;
    for (int32_t dim : x) {
      copies.push_back(uniform(random, 0, 9) == 0 ? 0 : uniform(random, 1, 3));
      y.push_back(static_cast<int32_t>(dim * copies.back()));
    }
    const SourceOf source = [=](size_t, Place at) {
      for (size_t d = 0; d < at.size(); ++d) at[d] %= x[d];
      return Source({0, element_at(x, at)});
    };
    return Case{{tensor(x), some_ints(random, copies)}, {tensor(y)}, {}, {0}, source};
  });
}
