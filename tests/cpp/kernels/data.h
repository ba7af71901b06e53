// SPDX-License-Identifier: Apache-2.0
// What the kernel tests feed: random bits, hard values, and buffers with a sentinel past the end.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/convert.h"
#include "pyquant/kernels.h"

namespace data {

using pyquant::kernels::BFloat16;
using pyquant::kernels::Float16;
using pyquant::kernels::Isa;

/// Two of the widest vectors of the smallest element, and one more.
constexpr int64_t kLongest = 2 * 64 + 1;

/// The versions that this CPU can run, the definition first.
inline std::vector<Isa> isas() {
  std::vector<Isa> all;
  const Isa active = pyquant::kernels::active_isa();
  for (Isa isa : {Isa::scalar, Isa::portable, Isa::avx2, Isa::avx512}) {
    if (pyquant::kernels::set_isa(isa)) all.push_back(isa);
  }
  pyquant::kernels::set_isa(active);
  return all;
}

/// Runs one version while it lives.
struct Using {
  Isa before = pyquant::kernels::active_isa();
  explicit Using(Isa isa) { pyquant::kernels::set_isa(isa); }
  Using(const Using&) = delete;
  Using& operator=(const Using&) = delete;
  ~Using() { pyquant::kernels::set_isa(before); }
};

template <class T>
T from_float(float v) {
  T out;
  if (std::isnan(v)) {
    if constexpr (!std::is_same_v<T, float>) {
      out.bits = 0x7fff;
      return out;
    }
  }
  pyquant::kernels::store(v, out);
  return out;
}

/// Values that round, saturate or break: halves and their neighbours, infinities, NaN, -0, denormals, huge
/// ones.
inline std::vector<float> hard_values(float scale) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> out{0.0f,
                         -0.0f,
                         inf,
                         -inf,
                         std::nanf(""),
                         std::numeric_limits<float>::denorm_min(),
                         -std::numeric_limits<float>::denorm_min(),
                         std::numeric_limits<float>::min(),
                         std::numeric_limits<float>::max(),
                         -std::numeric_limits<float>::max(),
                         0x1p23f,
                         0x1p24f,
                         -0x1p31f,
                         0x1p63f};
  for (float step : {0.5f, 1.5f, 2.5f, 7.5f, 126.5f, 127.5f, 128.5f, 255.5f, 32767.5f, 65535.5f}) {
    for (float v : {step * scale, -step * scale}) {
      out.push_back(v);
      out.push_back(std::nextafter(v, inf));
      out.push_back(std::nextafter(v, -inf));
    }
  }
  return out;
}

/// n values: hard ones, random bits and ordinary ones, mixed.
template <class T>
std::vector<T> mixed(int64_t n, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 40.0f * scale);
  const std::vector<float> hard = hard_values(scale);
  std::vector<T> out(n);
  for (T& v : out) {
    const uint32_t r = random();
    if (r % 4 == 0) {
      v = from_float<T>(hard[(r >> 8) % hard.size()]);
    } else if (r % 4 == 1) {
      const uint32_t bits = random();
      std::memcpy(&v, &bits, sizeof(T));
    } else {
      v = from_float<T>(normal(random));
    }
  }
  return out;
}

/// n values without NaN and Inf.
template <class T>
std::vector<T> ordinary(int64_t n, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<T> out(n);
  for (T& v : out) v = from_float<T>(normal(random));
  return out;
}

/// A result buffer that starts `offset` elements into its memory and knows when something wrote outside it.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n, int64_t offset = 0)
      : begin_(kPad + offset), n_(n), memory_(n + offset + 2 * kPad) {
    std::memset(static_cast<void*>(memory_.data()), 0xa5, memory_.size() * sizeof(T));
  }
  T* data() { return memory_.data() + begin_; }
  const T& operator[](int64_t i) const { return memory_[begin_ + i]; }
  bool intact() const {
    for (int64_t i = 0; i < static_cast<int64_t>(memory_.size()); ++i) {
      if (i >= begin_ && i < begin_ + n_) continue;
      const auto* bytes = reinterpret_cast<const unsigned char*>(&memory_[i]);
      for (size_t b = 0; b < sizeof(T); ++b) {
        if (bytes[b] != 0xa5) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kPad = 64;
  int64_t begin_, n_;
  std::vector<T> memory_;
};

}  // namespace data
