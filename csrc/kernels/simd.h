// SPDX-License-Identifier: Apache-2.0
// One loop, compiled for several instruction sets and chosen at run time; private to csrc/kernels.
//
// A kernel is a struct with two static functions of the same arguments: `scalar`, the definition, and
// `vector`, a plain loop that the compiler vectorizes. `vector` and what it calls are PYQUANT_INLINE, so that
// each of the functions below gets its own copy for its own instruction set. Only these carry a target
// attribute: no header function of std can be emitted with instructions that the CPU lacks (the trap of
// compiling a whole file with -mavx512f).
#pragma once

#include <string_view>
#include <utility>

#include "pyquant/kernels.h"

#define PYQUANT_INLINE __attribute__((always_inline)) inline

#if defined(__x86_64__)
#define PYQUANT_X86 1
// What the compiler may use in a version, and what isa_runs_on() asks the CPU for: the same list.
#define PYQUANT_AVX2_FEATURES "avx2,f16c,fma"
#define PYQUANT_AVX512_FEATURES PYQUANT_AVX2_FEATURES ",avx512f,avx512bw,avx512dq,avx512vl"
#define PYQUANT_TARGET_AVX2 __attribute__((noinline, target(PYQUANT_AVX2_FEATURES)))
#if defined(__clang__)
#define PYQUANT_TARGET_AVX512 __attribute__((noinline, target(PYQUANT_AVX512_FEATURES)))
#else
#define PYQUANT_TARGET_AVX512 \
  __attribute__((noinline, target(PYQUANT_AVX512_FEATURES ",prefer-vector-width=512")))
#endif
#endif

namespace pyquant::kernels {

/// Whether a CPU runs a version: `has` answers for one feature, by its name in the lists above.
bool isa_runs_on(Isa isa, bool (*has)(std::string_view feature));

template <class Kernel, class... Args>
__attribute__((noinline)) auto on_portable(Args... args) {
  return Kernel::vector(args...);
}

#ifdef PYQUANT_X86
template <class Kernel, class... Args>
PYQUANT_TARGET_AVX2 auto on_avx2(Args... args) {
  return Kernel::vector(args...);
}

template <class Kernel, class... Args>
PYQUANT_TARGET_AVX512 auto on_avx512(Args... args) {
  return Kernel::vector(args...);
}
#endif

/// Runs the version of Kernel that active_isa() names.
template <class Kernel, class... Args>
auto dispatch(Args... args) {
  switch (active_isa()) {
    case Isa::scalar:
      return Kernel::scalar(args...);
#ifdef PYQUANT_X86
    case Isa::avx2:
      return on_avx2<Kernel>(args...);
    case Isa::avx512:
      return on_avx512<Kernel>(args...);
#endif
    default:
      return on_portable<Kernel>(args...);
  }
}

}  // namespace pyquant::kernels
