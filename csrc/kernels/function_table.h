// SPDX-License-Identifier: Apache-2.0
// A function of one quantized value as a table of its integers, made when it pays: the few elements before
// that are computed one by one. Both ways give the same integers. Private to csrc.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/unary.h"

namespace pyquant::kernels {

/// What makes two tables equal. Input and output have one dtype Q, all of whose integers have an entry.
struct FunctionKey {
  UnaryFunction function;
  ScaleZeroPoint in;
  ScaleZeroPoint out;
  Grid grid;  // of the output

  bool operator==(const FunctionKey& other) const;
};

/// Q: int8_t, uint8_t (256 entries), int16_t (65,536). Threads may share one.
template <class Q>
class FunctionTable {
 public:
  explicit FunctionTable(const FunctionKey& key);
  FunctionTable(const FunctionTable&) = delete;
  FunctionTable& operator=(const FunctionTable&) = delete;

  const FunctionKey& key() const { return key_; }
  /// y[i] = f(x[i]); x may be y. Allocates nothing.
  void apply(const Q* x, Q* y, int64_t n);

 private:
  /// Whether `n` more elements find or make the table: it is made once as many elements were asked for as it
  /// has entries, by the thread that notices.
  bool ready_for(int64_t n);

  const FunctionKey key_;
  std::unique_ptr<Q[]> entries_;  // not written (and not resident) before they are needed
  std::atomic<int64_t> asked_{0};
  std::atomic<bool> ready_{false};
  std::mutex making_;
};

/// The tables of a plan: one for each key. For use while a plan is prepared, by one thread.
class FunctionTables {
 public:
  template <class Q>
  std::shared_ptr<FunctionTable<Q>> get(const FunctionKey& key);

 private:
  template <class Q>
  std::vector<std::shared_ptr<FunctionTable<Q>>>& all();

  std::vector<std::shared_ptr<FunctionTable<int8_t>>> int8_;
  std::vector<std::shared_ptr<FunctionTable<uint8_t>>> uint8_;
  std::vector<std::shared_ptr<FunctionTable<int16_t>>> int16_;
};

}  // namespace pyquant::kernels
