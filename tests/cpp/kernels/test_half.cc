// SPDX-License-Identifier: Apache-2.0
// 16-bit floats to float32 and back: every version gives the bits of the definition, of every value there is.
#include "../check.h"
#include "data.h"
#include "kernels/half.h"

using namespace pyquant::kernels;

namespace {

template <class T>
void check_widen() {
  std::vector<T> all(0x10000 + 7);
  for (size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<uint16_t>(i);
  for (Isa isa : data::isas()) {
    const check::Context here(isa_name(isa));
    const data::Using use(isa);
    data::Guarded<float> wide(static_cast<int64_t>(all.size()), 3);
    widen(all.data(), static_cast<int64_t>(all.size()), wide.data());
    CHECK(wide.intact());
    for (size_t i = 0; i < all.size(); ++i) CHECK_BITS(wide[static_cast<int64_t>(i)], load(all[i]));
    for (int64_t n = 0; n <= 33; ++n) {
      data::Guarded<float> part(n, n % 5);
      widen(all.data() + 0x3bf0, n, part.data());
      CHECK(part.intact());
      for (int64_t i = 0; i < n; ++i) CHECK_BITS(part[i], load(all[0x3bf0 + i]));
    }
  }
}

void check_narrow(const std::vector<float>& x) {
  const auto n = static_cast<int64_t>(x.size());
  for (Isa isa : data::isas()) {
    const check::Context here(isa_name(isa));
    const data::Using use(isa);
    data::Guarded<Float16> halves(n, 1);
    narrow(x.data(), n, halves.data());
    CHECK(halves.intact());
    for (int64_t i = 0; i < n; ++i) {
      Float16 expected;
      store(x[i], expected);
      CHECK_BITS(halves[i], expected);
    }
  }
}

}  // namespace

TEST(widen_float16) { check_widen<Float16>(); }
TEST(widen_bfloat16) { check_widen<BFloat16>(); }

TEST(nan_of_float16_keeps_its_payload_and_becomes_quiet) {
  CHECK_EQ(bits_of(load(Float16{0x7c01})), 0x7fc02000u);
  CHECK_EQ(bits_of(load(Float16{0xfe55})), 0xffcaa000u);
  CHECK_EQ(bits_of(load(Float16{0xfc00})), 0xff800000u);
}

TEST(narrow_between_all_neighbours) {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float low = load(Float16{static_cast<uint16_t>(bits)});
    const float high = bits == 0x7bff ? 65536.0f : load(Float16{static_cast<uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;
    for (float v : {low, std::nextafter(middle, 0.0f), middle, std::nextafter(middle, high)}) {
      x.push_back(v);
      x.push_back(-v);
    }
  }
  check_narrow(x);
}

TEST(narrow_any_float) {
  std::vector<float> x = data::mixed<float>(20001, 1.0f, 3);
  for (float& v : x) v = std::isnan(v) ? 1.0f : v;
  check_narrow(x);
  for (size_t n = 0; n <= 33; ++n) check_narrow({x.begin(), x.begin() + static_cast<std::ptrdiff_t>(n)});
}
