// SPDX-License-Identifier: Apache-2.0
// One loop, compiled for several instruction sets and chosen at run time; private to csrc/kernels.
//
// A kernel is a struct with two static functions of the same arguments: `scalar`, the definition, and
// `vector`, a plain loop that the compiler vectorizes. `vector` and what it calls are PYQUANT_INLINE, so that
// each of the functions below gets its own copy for its own instruction set. Only these carry a target
// attribute: no header function of std can be emitted with instructions that the CPU lacks (the trap of
// compiling a whole file with -mavx512f).
#pragma once

#include <utility>

#include "pyquant/kernels.h"

#define PYQUANT_INLINE __attribute__((always_inline)) inline

#if defined(__x86_64__)
#define PYQUANT_X86 1
#define PYQUANT_TARGET_AVX2 __attribute__((noinline, target("avx2,f16c")))
#if defined(__clang__)
#define PYQUANT_TARGET_AVX512 \
  __attribute__((noinline, target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define PYQUANT_TARGET_AVX512 \
  __attribute__((noinline, target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#endif

namespace pyquant::kernels {

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
