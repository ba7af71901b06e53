// SPDX-License-Identifier: Apache-2.0
// pack_int4 and unpack_int4: layout, round trip at every length, values that do not fit.
#include "../check.h"
#include "data.h"

using namespace pyquant::kernels;

namespace {

template <class Q>
void check_round_trip(int lowest) {
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    for (int64_t n = 0; n <= 2 * data::kLongest; ++n) {
      const check::Context here(isa_name(isa), " length ", n);
      std::vector<Q> q(n);
      for (int64_t i = 0; i < n; ++i) q[i] = static_cast<Q>(lowest + (i * 7 + n) % 16);
      data::Guarded<uint8_t> packed((n + 1) / 2, n % 3);
      data::Guarded<Q> back(n, n % 5);
      CHECK(pack_int4(q.data(), n, packed.data()));
      unpack_int4(packed.data(), n, back.data());
      CHECK(packed.intact() && back.intact());
      for (int64_t i = 0; i < n; ++i) {
        CHECK_EQ(back[i], q[i]);
        CHECK_EQ((packed[i / 2] >> (i % 2 * 4)) & 15, q[i] & 15);
      }
      if (n % 2) CHECK_EQ(packed[n / 2] >> 4, 0);
    }
  }
}

}  // namespace

TEST(int4_round_trip) { check_round_trip<int8_t>(-8); }
TEST(uint4_round_trip) { check_round_trip<uint8_t>(0); }

TEST(five_bits_are_told) {
  for (Isa isa : data::isas()) {
    const data::Using use(isa);
    for (int64_t n : {1, 2, 65, 130}) {
      for (int64_t at : {int64_t{0}, n / 2, n - 1}) {
        uint8_t packed[65];
        std::vector<int8_t> q(n, 7);
        q[at] = 8;
        CHECK(!pack_int4(q.data(), n, packed));
        q[at] = -9;
        CHECK(!pack_int4(q.data(), n, packed));
        std::vector<uint8_t> u(n, 15);
        CHECK(pack_int4(u.data(), n, packed));
        u[at] = 16;
        CHECK(!pack_int4(u.data(), n, packed));
      }
    }
  }
}
