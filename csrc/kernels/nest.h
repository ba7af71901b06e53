// SPDX-License-Identifier: Apache-2.0
// Nested loops over the dimensions of N arrays at once, each with strides of its own (0: the same element
// again), with as few dimensions as possible. Private to csrc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace pyquant::kernels {

/// Dimensions are added outermost first; those of size 1 vanish, neighbours that are one run in all arrays
/// join.
template <int N>
class Nest {
 public:
  /// A tensor has at most 2^56 elements, so at most 56 dimensions of 2 or more.
  static constexpr int kMost = 56;
  using Offsets = std::array<int64_t, N>;

  void add(int64_t size, const Offsets& strides) {
    if (size == 1) return;
    if (size == 0 || rank_ == kMost) empty_ = true;
    if (empty_) return;
    if (rank_ > 0 && joins(size, strides)) {
      size_[rank_ - 1] *= size;
      stride_[rank_ - 1] = strides;
      return;
    }
    size_[rank_] = size;
    stride_[rank_++] = strides;
  }

  bool empty() const { return empty_; }
  int rank() const { return rank_; }
  int64_t size(int d) const { return size_[d]; }
  int64_t stride(int d, int array) const { return stride_[d][static_cast<std::size_t>(array)]; }
  const Offsets& strides(int d) const { return stride_[d]; }
  int64_t count() const {
    int64_t n = empty_ ? 0 : 1;
    for (int d = 0; d < rank_ && n > 0; ++d) n *= size_[d];
    return n;
  }
  /// The last dimension, or one element where there is none.
  int64_t columns() const { return rank_ > 0 ? size_[rank_ - 1] : 1; }
  Offsets column_strides() const { return rank_ > 0 ? stride_[rank_ - 1] : Offsets{}; }
  /// How often the last dimension is walked.
  int64_t rows() const { return empty_ ? 0 : count() / columns(); }

  /// Without the dimension d, for loops that walk it otherwise.
  Nest without(int d) const {
    Nest other;
    other.empty_ = empty_;
    for (int i = 0; i < rank_; ++i) {
      if (i == d) continue;
      other.size_[other.rank_] = size_[i];
      other.stride_[other.rank_++] = stride_[i];
    }
    return other;
  }

  /// body(offsets) for rows [begin, end), with the offset of the row's first element in each array.
  template <typename Body>
  void for_rows(int64_t begin, int64_t end, const Body& body) const {
    walk(rank_ - 1, begin, end, body);
  }
  /// body(offsets) for elements [begin, end).
  template <typename Body>
  void for_each(int64_t begin, int64_t end, const Body& body) const {
    walk(rank_, begin, end, body);
  }

 private:
  // The first `dims` dimensions.
  template <typename Body>
  void walk(int dims, int64_t begin, int64_t end, const Body& body) const {
    if (begin >= end) return;
    int64_t at[kMost];
    Offsets offsets{};
    int64_t left = begin;
    for (int d = dims - 1; d >= 0; --d) {
      at[d] = left % size_[d];
      left /= size_[d];
      for (std::size_t a = 0; a < N; ++a) offsets[a] += at[d] * stride_[d][a];
    }
    for (int64_t row = begin;;) {
      body(offsets);
      if (++row == end) return;
      for (int d = dims - 1; d >= 0; --d) {
        for (std::size_t a = 0; a < N; ++a) offsets[a] += stride_[d][a];
        if (++at[d] < size_[d]) break;
        for (std::size_t a = 0; a < N; ++a) offsets[a] -= at[d] * stride_[d][a];
        at[d] = 0;
      }
    }
  }

  bool joins(int64_t size, const Offsets& strides) const {
    for (std::size_t a = 0; a < N; ++a) {
      if (stride_[rank_ - 1][a] != size * strides[a]) return false;
    }
    return true;
  }

  int rank_ = 0;
  bool empty_ = false;
  int64_t size_[kMost] = {};
  Offsets stride_[kMost] = {};
};

}  // namespace pyquant::kernels
