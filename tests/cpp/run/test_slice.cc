// SPDX-License-Identifier: Apache-2.0
// Parts of tensors, and tensors with more around or of them, against index arithmetic element by element.
#include <algorithm>

#include "check.h"
#include "move_case.h"

using namespace run;

TEST(slice) {
  check_moves("SLICE", [](std::mt19937& random) {
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
    return MoveCase{
        {tensor(x), some_ints(random, begin), some_ints(random, size)}, {tensor(y)}, {}, {0}, source};
  });
}

TEST(strided_slice) {
  check_moves("STRIDED_SLICE", [](std::mt19937& random) {
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
    return MoveCase{{tensor(x), some_ints(random, begin), some_ints(random, end), some_ints(random, step)},
                    {tensor(y)},
                    {{"begin_mask", begin_mask}, {"end_mask", end_mask}, {"shrink_axis_mask", shrink}},
                    {0},
                    source};
  });
}

TEST(pad) {
  for (const char* op : {"PAD", "PADV2"}) {
    const bool valued = std::string(op) == "PADV2";
    check_moves(op, [=](std::mt19937& random) {
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
      return MoveCase{
          in, {tensor(y)}, {}, valued ? std::vector<size_t>{0, 2} : std::vector<size_t>{0}, source};
    });
  }
}

TEST(broadcast_to_and_tile) {
  check_moves("BROADCAST_TO", [](std::mt19937& random) {
    const Shape y = random_shape(random, uniform(random, 0, 4), 9);
    Shape x(y.begin() + uniform(random, 0, static_cast<int>(y.size())), y.end());
    for (int32_t& dim : x) dim = uniform(random, 0, 1) == 0 ? 1 : dim;
    const SourceOf source = [=](size_t, const Place& at) {
      Place from(at.end() - static_cast<std::ptrdiff_t>(x.size()), at.end());
      for (size_t d = 0; d < x.size(); ++d) from[d] = x[d] == 1 ? 0 : from[d];
      return Source({0, element_at(x, from)});
    };
    return MoveCase{{tensor(x), some_ints(random, wide(y))}, {tensor(y)}, {}, {0}, source};
  });
  check_moves("TILE", [](std::mt19937& random) {
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
    return MoveCase{{tensor(x), some_ints(random, copies)}, {tensor(y)}, {}, {0}, source};
  });
}
