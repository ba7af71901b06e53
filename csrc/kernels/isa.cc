// SPDX-License-Identifier: Apache-2.0
// Which instruction sets this CPU has, and which one is in use.
#include "kernels/simd.h"

#include <algorithm>
#include <atomic>
#include <string_view>

#ifdef PYQUANT_X86
#include <cpuid.h>
#endif

#include "pyquant/kernels.h"

namespace pyquant::kernels {
namespace {

#ifdef PYQUANT_X86
/// F16C has no name for __builtin_cpu_supports before GCC 11 and Clang 18. That the system saves the
/// registers it uses is part of what "avx2" answers.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool cpu_has(std::string_view feature) {
  if (feature == "avx2") return __builtin_cpu_supports("avx2");
  if (feature == "f16c") return has_f16c();
  if (feature == "fma") return __builtin_cpu_supports("fma");
  if (feature == "avx512f") return __builtin_cpu_supports("avx512f");
  if (feature == "avx512bw") return __builtin_cpu_supports("avx512bw");
  if (feature == "avx512dq") return __builtin_cpu_supports("avx512dq");
  if (feature == "avx512vl") return __builtin_cpu_supports("avx512vl");
  return false;  // a feature without a question here: the version that needs it is not used
}

bool has_all(std::string_view features, bool (*has)(std::string_view)) {
  while (!features.empty()) {
    const size_t comma = std::min(features.find(','), features.size());
    if (!has(features.substr(0, comma))) return false;
    features.remove_prefix(std::min(comma + 1, features.size()));
  }
  return true;
}
#else
bool cpu_has(std::string_view) { return false; }
#endif

bool has(Isa isa) { return isa_runs_on(isa, cpu_has); }

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

bool isa_runs_on(Isa isa, [[maybe_unused]] bool (*has)(std::string_view)) {
  switch (isa) {
    case Isa::scalar:
    case Isa::portable:
      return true;
#ifdef PYQUANT_X86
    case Isa::avx2:
      return has_all(PYQUANT_AVX2_FEATURES, has);
    case Isa::avx512:
      return has_all(PYQUANT_AVX512_FEATURES, has);
#else
    case Isa::avx2:
    case Isa::avx512:
      return false;
#endif
  }
  return false;
}

Isa best_isa() {
  static const Isa best = has(Isa::avx512) ? Isa::avx512 : has(Isa::avx2) ? Isa::avx2 : Isa::portable;
  return best;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

bool set_isa(Isa isa) {
  if (!has(isa)) return false;
  active().store(isa, std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace pyquant::kernels
