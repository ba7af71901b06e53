// SPDX-License-Identifier: Apache-2.0
// Making, sharing and reading tables of functions.
#include "kernels/function_table.h"

#include <limits>

namespace pyquant::kernels {
namespace {

template <class Q>
constexpr int64_t kEntries = int64_t{1} << (8 * sizeof(Q));

/// Entry number of an integer: that of its bits.
template <class Q>
uint32_t entry_of(Q q) {
  return static_cast<std::make_unsigned_t<Q>>(q);
}

bool same(ScaleZeroPoint a, ScaleZeroPoint b) { return a.scale == b.scale && a.zero_point == b.zero_point; }

}  // namespace

bool FunctionKey::operator==(const FunctionKey& other) const {
  return function.kind == other.function.kind && function.alpha == other.function.alpha &&
         same(in, other.in) && same(out, other.out) && grid.qmin == other.grid.qmin &&
         grid.qmax == other.grid.qmax;
}

template <class Q>
FunctionTable<Q>::FunctionTable(const FunctionKey& key) : key_(key), entries_(new Q[kEntries<Q>]) {}

template <class Q>
bool FunctionTable<Q>::ready_for(int64_t n) {
  if (ready_.load(std::memory_order_acquire)) return true;
  if (asked_.fetch_add(n, std::memory_order_relaxed) + n < kEntries<Q>) return false;
  if (!making_.try_lock()) return false;  // another thread makes it
  if (!ready_.load(std::memory_order_relaxed)) {
    constexpr int64_t kPiece = 256;
    Q q[kPiece];
    for (int64_t begin = 0; begin < kEntries<Q>; begin += kPiece) {
      for (int64_t i = 0; i < kPiece; ++i) q[i] = static_cast<Q>(begin + i);
      unary_quantized(key_.function, q, key_.in, entries_.get() + begin, key_.out, key_.grid, kPiece);
    }
    ready_.store(true, std::memory_order_release);
  }
  making_.unlock();
  return true;
}

template <class Q>
void FunctionTable<Q>::apply(const Q* x, Q* y, int64_t n) {
  if (!ready_for(n)) return unary_quantized(key_.function, x, key_.in, y, key_.out, key_.grid, n);
  const Q* const entries = entries_.get();
  for (int64_t i = 0; i < n; ++i) y[i] = entries[entry_of(x[i])];
}

template <>
std::vector<std::shared_ptr<FunctionTable<int8_t>>>& FunctionTables::all() {
  return int8_;
}
template <>
std::vector<std::shared_ptr<FunctionTable<uint8_t>>>& FunctionTables::all() {
  return uint8_;
}
template <>
std::vector<std::shared_ptr<FunctionTable<int16_t>>>& FunctionTables::all() {
  return int16_;
}

template <class Q>
std::shared_ptr<FunctionTable<Q>> FunctionTables::get(const FunctionKey& key) {
  auto& known = all<Q>();
  for (const auto& table : known) {
    if (table->key() == key) return table;
  }
  known.push_back(std::make_shared<FunctionTable<Q>>(key));
  return known.back();
}

template class FunctionTable<int8_t>;
template class FunctionTable<uint8_t>;
template class FunctionTable<int16_t>;
template std::shared_ptr<FunctionTable<int8_t>> FunctionTables::get(const FunctionKey&);
template std::shared_ptr<FunctionTable<uint8_t>> FunctionTables::get(const FunctionKey&);
template std::shared_ptr<FunctionTable<int16_t>> FunctionTables::get(const FunctionKey&);

}  // namespace pyquant::kernels
