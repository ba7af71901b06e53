// SPDX-License-Identifier: Apache-2.0
// Which version of a kernel a CPU gets: one that lacks any feature that the version is compiled for does not
// get it.
#include <string_view>

#include "../check.h"
#include "kernels/simd.h"

namespace {

using namespace pyquant::kernels;

bool nothing(std::string_view) { return false; }
bool everything(std::string_view) { return true; }

}  // namespace

TEST(plain_versions_run_everywhere) {
  for (const Isa isa : {Isa::scalar, Isa::portable}) CHECK(isa_runs_on(isa, nothing));
  for (const Isa isa : {Isa::avx2, Isa::avx512}) CHECK(!isa_runs_on(isa, nothing));
}

#ifdef PYQUANT_X86
TEST(each_feature_is_asked_for) {
  CHECK(isa_runs_on(Isa::avx2, everything));
  CHECK(isa_runs_on(Isa::avx512, everything));
  CHECK(!isa_runs_on(Isa::avx2, [](std::string_view feature) { return feature != "avx2"; }));
  CHECK(!isa_runs_on(Isa::avx2, [](std::string_view feature) { return feature != "f16c"; }));
  CHECK(!isa_runs_on(Isa::avx2, [](std::string_view feature) { return feature != "fma"; }));
  CHECK(isa_runs_on(Isa::avx2, [](std::string_view feature) { return feature.substr(0, 6) != "avx512"; }));
  CHECK(!isa_runs_on(Isa::avx512, [](std::string_view feature) { return feature != "f16c"; }));
  CHECK(!isa_runs_on(Isa::avx512, [](std::string_view feature) { return feature != "avx512f"; }));
  CHECK(!isa_runs_on(Isa::avx512, [](std::string_view feature) { return feature != "avx512bw"; }));
  CHECK(!isa_runs_on(Isa::avx512, [](std::string_view feature) { return feature != "avx512dq"; }));
  CHECK(!isa_runs_on(Isa::avx512, [](std::string_view feature) { return feature != "avx512vl"; }));
}

TEST(this_cpu_is_asked_as_the_compiler_asks) {
  CHECK_EQ(set_isa(Isa::avx2), __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("f16c") != 0 &&
                                   __builtin_cpu_supports("fma") != 0);
  CHECK(set_isa(best_isa()));
}
#endif
