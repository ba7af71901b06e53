// SPDX-License-Identifier: Apache-2.0
// quantize_blocks and its way back, against ggml's rule written plainly: one value after the other, in its
// order.
#include <cmath>
#include <cstring>

#include "../check.h"
#include "data.h"
#include "kernels/convert.h"

using namespace pyquant::kernels;

namespace {

constexpr int kLength = static_cast<int>(kBlockLength);

/// One block by the rule; false when its scale is not finite in half precision.
bool encode_plainly(const float* x, int bits, uint8_t* to) {
  float most = 0.0f, signed_most = 0.0f;
  for (int i = 0; i < kLength; ++i) {
    if (!std::isfinite(x[i])) return false;
    if (std::fabs(x[i]) > most) {
      most = std::fabs(x[i]);
      signed_most = x[i];
    }
  }
  const float d = bits == 4 ? signed_most / -8.0f : most / 127.0f;
  float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  if (std::isinf(inverse)) inverse = 0.0f;
  Float16 half;
  store(d, half);
  std::memcpy(to, &half.bits, 2);
  for (int i = 0; i < kLength; ++i) {
    if (bits == 8) {
      to[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::round(x[i] * inverse)));
    } else {
      const int q = std::min(15, static_cast<int>(static_cast<int8_t>(x[i] * inverse + 8.5f)));
      if (i < kLength / 2) {
        to[2 + i] = static_cast<uint8_t>(q);
      } else {
        to[2 + i - kLength / 2] |= static_cast<uint8_t>(q << 4);
      }
    }
  }
  return (half.bits & 0x7c00u) != 0x7c00u;
}

template <class T>
void check_against_the_rule(const std::vector<T>& x, int bits) {
  const auto blocks = static_cast<int64_t>(x.size()) / kLength;
  std::vector<float> wide(x.size());
  for (size_t i = 0; i < x.size(); ++i) wide[i] = load(x[i]);
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    for (int64_t b = 0; b < blocks; ++b) {
      const check::Context here(isa_name(isa), " bits ", bits, " block ", b);
      uint8_t expected[34] = {};
      const bool good = encode_plainly(wide.data() + b * kLength, bits, expected);
      data::Guarded<uint8_t> packed(block_bytes(bits), b % 3);
      data::Guarded<T> same(kLength, b % 5);
      CHECK_EQ(quantize_blocks(x.data() + b * kLength, 1, bits, packed.data()), good);
      CHECK_EQ(fake_quantize_blocks(x.data() + b * kLength, 1, bits, same.data()), good);
      CHECK(packed.intact() && same.intact());
      if (!good) continue;
      for (int64_t i = 0; i < block_bytes(bits); ++i) CHECK_EQ(int(packed[i]), int(expected[i]));
      float back[kLength];
      dequantize_blocks(packed.data(), 1, bits, back);
      for (int i = 0; i < kLength; ++i) {
        T stored;
        store(back[i], stored);
        CHECK(std::memcmp(&stored, &same[i], sizeof(T)) == 0);
        CHECK(!(back[i] == 0.0f && std::signbit(back[i])));
      }
    }
  }
}

template <class T>
void check_all(int bits) {
  for (float spread : {1.0f, 1e-3f, 1e-7f, 1e-39f, 1e4f}) {
    check_against_the_rule(data::ordinary<T>(20 * kLength, spread, 7), bits);
  }
  check_against_the_rule(data::mixed<T>(100 * kLength, 0.1f, 11), bits);
  std::vector<T> special(4 * kLength, data::from_float<T>(0.0f));
  special[kLength + 3] = data::from_float<T>(-0.0f);
  special[2 * kLength] = data::from_float<T>(2.0f);  // the first of two of equal magnitude gives the sign
  special[2 * kLength + 9] = data::from_float<T>(-2.0f);
  special[3 * kLength + 4] = data::from_float<T>(-2.0f);
  special[3 * kLength + 31] = data::from_float<T>(2.0f);
  check_against_the_rule(special, bits);
}

}  // namespace

TEST(blocks_of_four_bits) {
  check_all<float>(4);
  check_all<BFloat16>(4);
  check_all<Float16>(4);
}

TEST(blocks_of_eight_bits) {
  check_all<float>(8);
  check_all<BFloat16>(8);
  check_all<Float16>(8);
}

TEST(many_blocks_at_once_are_each_alone) {
  const auto x = data::ordinary<float>(9 * kLength, 1.0f, 3);
  for (int bits : {4, 8}) {
    std::vector<uint8_t> all(9 * block_bytes(bits)), one(block_bytes(bits));
    CHECK(quantize_blocks(x.data(), 9, bits, all.data()));
    for (int64_t b = 0; b < 9; ++b) {
      CHECK(quantize_blocks(x.data() + b * kLength, 1, bits, one.data()));
      CHECK(std::memcmp(one.data(), all.data() + b * block_bytes(bits), one.size()) == 0);
    }
  }
}
