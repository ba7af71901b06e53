// SPDX-License-Identifier: Apache-2.0
#include "move_case.h"

#include <algorithm>

#include "check.h"

namespace run {
namespace {

constexpr DType kTypes[] = {DType::FLOAT32, DType::FLOAT16, DType::BFLOAT16, DType::INT4,
                            DType::UINT4,   DType::INT8,    DType::UINT8,    DType::INT16,
                            DType::INT32,   DType::INT64,   DType::BOOL};

enum class GridCase { None, Same, Different, ByChannel };
constexpr GridCase kGrids[] = {GridCase::None, GridCase::Same, GridCase::Different, GridCase::ByChannel};

/// One grid, or one for each channel of some dimension.
void give_some_grid(std::mt19937& random, Operand& t, bool by_channel) {
  by_channel &= count_of(t.shape) > 0 && !t.shape.empty();
  give_grid(random, t, by_channel ? uniform(random, 0, static_cast<int>(t.shape.size()) - 1) : -1);
}

/// Gives the data operands values and grids, runs the step, compares every element. `data`: which inputs are.
void check_one(const std::string& op, std::vector<Operand> in, std::vector<Operand> out,
               const Options& options, const std::vector<size_t>& data, DType dtype, GridCase grids,
               std::mt19937& random, const SourceOf& source) {
  Operand one{dtype, {}};
  if (grids != GridCase::None) give_some_grid(random, one, false);
  const auto grid = [&](Operand& t) {
    t.dtype = dtype;
    t.scale = one.scale;
    t.zero_point = one.zero_point;
    if (grids == GridCase::Different || grids == GridCase::ByChannel)
      give_some_grid(random, t, grids == GridCase::ByChannel && uniform(random, 0, 2) > 0);
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

}  // namespace

void check_moves(const std::string& op, const std::function<MoveCase(std::mt19937&)>& make, int rounds) {
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(op)));
  for (DType dtype : kTypes) {
    for (GridCase grids : kGrids) {
      if (grids != GridCase::None && !pyquant::circle::is_quantized(dtype) && dtype != DType::INT32) continue;
      for (int round = 0; round < rounds; ++round) {
        const MoveCase c = make(random);
        check_one(op, c.in, c.out, c.options, c.data, dtype, grids, random, c.source);
      }
    }
  }
}

}  // namespace run
