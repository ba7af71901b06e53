// SPDX-License-Identifier: Apache-2.0
// A copy is a loop over planes of two dimensions: runs of memory, transposes in squares, or elements one by
// one.
#include "kernels/move.h"

#include <algorithm>
#include <cstring>

#include "kernels/transpose.h"

namespace pyquant::kernels {
namespace {

constexpr int64_t kPart = 16384;  // elements that are worth a thread
constexpr int64_t kRun = 256;     // bytes of a column that a transpose reads at a time

/// Two dimensions of a copy; strides count elements.
struct Plane {
  int64_t rows, columns;
  int64_t row_from, row_to;
  int64_t column_from, column_to;
};

template <class Cell>
void copy_cell(const uint8_t* from, uint8_t* to) {
  Cell cell;
  std::memcpy(&cell, from, sizeof cell);
  std::memcpy(to, &cell, sizeof cell);
}

template <class Cell>
void copy_cells(const Plane& p, const uint8_t* from, uint8_t* to) {
  constexpr int64_t kWidth = sizeof(Cell);
  for (int64_t r = 0; r < p.rows; ++r) {
    const uint8_t* x = from + r * p.row_from * kWidth;
    uint8_t* y = to + r * p.row_to * kWidth;
    for (int64_t c = 0; c < p.columns; ++c, x += p.column_from * kWidth, y += p.column_to * kWidth)
      copy_cell<Cell>(x, y);
  }
}

// Of a plane whose rows are runs in `from` and columns in `to`: squares by `body`, what is left by `other`.
template <class Cell, class Body, class Other>
void divide(const Plane& p, int64_t side, const uint8_t* from, uint8_t* to, const Body& body,
            const Other& other) {
  constexpr int64_t kWidth = sizeof(Cell);
  const int64_t rows = p.rows / side * side, columns = p.columns / side * side;
  for (int64_t r = 0; r < rows; r += side) {
    for (int64_t c = 0; c < columns; c += side) {
      body(from + (c * p.column_from + r) * kWidth, to + (r * p.row_to + c) * kWidth);
    }
  }
  Plane rest = p;
  rest.columns = p.columns - columns;
  if (rest.columns > 0) other(rest, from + columns * p.column_from * kWidth, to + columns * kWidth);
  rest.rows = p.rows - rows;
  rest.columns = columns;
  if (rest.rows > 0) other(rest, from + rows * kWidth, to + rows * p.row_to * kWidth);
}

template <class Cell>
void transpose_squares(const Plane& p, const uint8_t* from, uint8_t* to) {
  constexpr int64_t kWidth = sizeof(Cell);
  const auto square = [&](const uint8_t* x, uint8_t* y) {
    Square<Cell>::run(x, p.column_from * kWidth, y, p.row_to * kWidth);
  };
  divide<Cell>(p, Square<Cell>::kSide, from, to, square, copy_cells<Cell>);
}

// A tile is a line of the cache long on both sides. It is read into a dense buffer line by line and written
// line by line, so that strides of a power of two do not evict lines halfway.
template <class Cell>
void transpose(const Plane& p, const uint8_t* from, uint8_t* to) {
  constexpr int64_t kWidth = sizeof(Cell), kLine = 64, kSide = kLine / kWidth;
  alignas(kLine) uint8_t buffer[kSide * kLine];
  const Plane dense{kSide, kSide, 1, p.row_to, kSide, 1};
  const auto tile = [&](const uint8_t* x, uint8_t* y) {
    for (int64_t i = 0; i < kSide; ++i)
      std::memcpy(buffer + i * kLine, x + i * p.column_from * kWidth, kLine);
    transpose_squares<Cell>(dense, buffer, y);
  };
  for (int64_t c = 0; c < p.columns; c += kSide) {
    Plane part = p;
    part.columns = std::min(kSide, p.columns - c);
    divide<Cell>(part, kSide, from + c * p.column_from * kWidth, to + c * kWidth, tile,
                 transpose_squares<Cell>);
  }
}

template <class Cell>
void copy_plane(const Plane& p, const uint8_t* from, uint8_t* to) {
  constexpr int64_t kWidth = sizeof(Cell);
  if (p.column_from == 1 && p.column_to == 1) {
    const auto bytes = static_cast<size_t>(p.columns * kWidth);
    for (int64_t r = 0; r < p.rows; ++r)
      std::memcpy(to + r * p.row_to * kWidth, from + r * p.row_from * kWidth, bytes);
  } else if (p.column_from == 0 && p.column_to == 1) {
    for (int64_t r = 0; r < p.rows; ++r)
      fill(8 * static_cast<int>(kWidth), from + r * p.row_from * kWidth, {to, r * p.row_to}, p.columns);
  } else if (p.row_from == 1 && p.column_to == 1) {
    transpose<Cell>(p, from, to);
  } else {
    copy_cells<Cell>(p, from, to);
  }
}

void copy_half_run(const uint8_t* from, int64_t i, uint8_t* to, int64_t j, int64_t n) {
  if ((i & 1) == (j & 1) && n > 2) {
    if ((i & 1) != 0) set_half(to, j++, get_half(from, i++)), --n;
    std::memcpy(to + j / 2, from + i / 2, static_cast<size_t>(n / 2));
    i += n / 2 * 2, j += n / 2 * 2, n %= 2;
  }
  for (; n > 0; --n) set_half(to, j++, get_half(from, i++));
}

// Offsets may be odd, so the copy of halves counts from the start of the arrays.
void copy_halves(const Plane& p, ReadEnd from, WriteEnd to) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const int64_t i = from.offset + r * p.row_from, j = to.offset + r * p.row_to;
    if (p.column_from == 1 && p.column_to == 1) {
      copy_half_run(from.bytes, i, to.bytes, j, p.columns);
      continue;
    }
    for (int64_t c = 0; c < p.columns; ++c)
      set_half(to.bytes, j + c * p.column_to, get_half(from.bytes, i + c * p.column_from));
  }
}

/// A nest as planes, some rows of a plane at a time.
struct Planes {
  CopyNest outer;  // its last dimension is the columns
  Plane plane;
  int64_t block, blocks;  // rows of a block, blocks of a plane

  Planes(const CopyNest& nest, int bits) : outer(nest), plane{1, nest.columns(), 0, 0, 1, 1} {
    const int last = nest.rank() - 1;
    int rows = last - 1;
    if (last >= 0) {
      plane.column_from = nest.stride(last, 0);
      plane.column_to = nest.stride(last, 1);
    }
    bool transposed = false;
    for (int d = 0; d < last && plane.column_from > 1 && !transposed; ++d) {
      if (nest.stride(d, 0) == 1) rows = d, transposed = true;
    }
    if (rows >= 0) {
      plane.rows = nest.size(rows);
      plane.row_from = nest.stride(rows, 0);
      plane.row_to = nest.stride(rows, 1);
      outer = nest.without(rows);
    }
    block = transposed ? 8 * kRun / bits : std::max<int64_t>(kPart / plane.columns, 1);
    block = std::min(block, plane.rows);
    blocks = (plane.rows + block - 1) / block;
  }

  int64_t units() const { return outer.rows() * blocks; }
  int64_t grain() const { return std::max<int64_t>(kPart / (block * plane.columns), 1); }

  /// body(plane, offsets) for units [begin, end).
  template <typename Body>
  void run(int64_t begin, int64_t end, const Body& body) const {
    if (begin >= end) return;
    int64_t unit = begin;
    outer.for_rows(begin / blocks, (end - 1) / blocks + 1, [&](CopyNest::Offsets offsets) {
      const int64_t first = unit % blocks, last = std::min(blocks, first + end - unit);
      for (int64_t b = first; b < last; ++b) {
        Plane part = plane;
        part.rows = std::min(block, plane.rows - b * block);
        body(part, CopyNest::Offsets{offsets[0] + b * block * plane.row_from,
                                     offsets[1] + b * block * plane.row_to});
      }
      unit += last - first;
    });
  }
};

template <class Cell>
void move_cells(Threads& threads, const CopyNest& nest, const uint8_t* from, uint8_t* to) {
  constexpr int64_t kWidth = sizeof(Cell);
  if (nest.rank() <= 1) {
    const CopyNest::Offsets stride = nest.column_strides();
    const auto part = [&](int64_t begin, int64_t end, int) {
      copy_plane<Cell>({1, end - begin, 0, 0, stride[0], stride[1]}, from + begin * stride[0] * kWidth,
                       to + begin * stride[1] * kWidth);
    };
    return nest.columns() < 2 * kPart ? part(0, nest.columns(), 0) : threads.run(nest.columns(), kPart, part);
  }
  const Planes planes(nest, 8 * static_cast<int>(kWidth));
  const auto part = [&](int64_t begin, int64_t end, int) {
    planes.run(begin, end, [&](const Plane& plane, const CopyNest::Offsets& at) {
      copy_plane<Cell>(plane, from + at[0] * kWidth, to + at[1] * kWidth);
    });
  };
  nest.count() < 2 * kPart ? part(0, planes.units(), 0) : threads.run(planes.units(), planes.grain(), part);
}

}  // namespace

void move(Threads& threads, const CopyNest& nest, int bits, ReadEnd from, WriteEnd to) {
  if (nest.empty()) return;
  if (bits == 4) {
    const Planes planes(nest, bits);
    return planes.run(0, planes.units(), [&](const Plane& plane, const CopyNest::Offsets& at) {
      copy_halves(plane, {from.bytes, from.offset + at[0]}, {to.bytes, to.offset + at[1]});
    });
  }
  const uint8_t* x = from.bytes + from.offset * (bits / 8);
  uint8_t* y = to.bytes + to.offset * (bits / 8);
  switch (bits) {
    case 8:
      return move_cells<uint8_t>(threads, nest, x, y);
    case 16:
      return move_cells<uint16_t>(threads, nest, x, y);
    case 32:
      return move_cells<uint32_t>(threads, nest, x, y);
    default:
      return move_cells<uint64_t>(threads, nest, x, y);
  }
}

void fill(int bits, const uint8_t* value, WriteEnd to, int64_t n) {
  if (n <= 0) return;
  if (bits == 4) {
    const int half = get_half(value, 0);
    int64_t i = to.offset;
    const int64_t end = i + n;
    if ((i & 1) != 0) set_half(to.bytes, i++, half);
    std::memset(to.bytes + i / 2, half * 17, static_cast<size_t>((end - i) / 2));
    if (i < end && (end & 1) != 0) set_half(to.bytes, end - 1, half);
    return;
  }
  const int64_t width = bits / 8, bytes = n * width;
  uint8_t* y = to.bytes + to.offset * width;
  if (width == 1) {
    std::memset(y, value[0], static_cast<size_t>(n));
    return;
  }
  std::memcpy(y, value, static_cast<size_t>(width));
  // What is written is copied behind itself, twice as much each time.
  for (int64_t done = width; done < bytes;) {
    const int64_t more = std::min({done, bytes - done, int64_t{4096}});
    std::memcpy(y + done, y, static_cast<size_t>(more));
    done += more;
  }
}

}  // namespace pyquant::kernels
