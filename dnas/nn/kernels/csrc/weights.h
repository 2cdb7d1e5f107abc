// Weights packed in the order in which the micro-kernels read them.
#pragma once

#include <vector>

#include "memory.h"

struct Rows {
  Index first, count;  // rows of the matrix
  int padded;          // count rounded up to an even number, for which there is a micro-kernel; padding rows are zeros
  Index row;           // packed rows before this group
  Index offset;        // position of the packed group
};

// Divides rows into groups of MOST_ROWS. The last two groups share the remainder.
inline std::vector<Rows> grouped(Index rows, Index columns) {
  std::vector<Rows> groups;
  Index offset = 0;
  for (Index first = 0; first < rows;) {
    const Index left = rows - first;
    Index count = MOST_ROWS;
    if (left <= MOST_ROWS) count = left;
    else if (left < 2 * MOST_ROWS) count = rounded_up((left + 1) / 2, 2);
    if (count > left) count = left;
    const int padded = static_cast<int>(rounded_up(count, 2));
    groups.push_back({first, count, padded, offset / columns, offset});
    offset += padded * columns;
    first += count;
  }
  return groups;
}

// A matrix [rows, columns] packed as [group][column][row].
struct Packed {
  std::vector<Rows> groups;
  Floats values;

  float* reserve(Index rows, Index columns) {
    groups = grouped(rows, columns);
    return values.grow(groups.back().offset + groups.back().padded * columns);
  }

  template <class Value>
  void pack(Index rows, Index columns, const Value& value) {
    float* to = reserve(rows, columns);
    for (const Rows& g : groups)
      for (Index k = 0; k < columns; k++)
        for (Index r = 0; r < g.padded; r++) *to++ = r < g.count ? value(g.first + r, k) : 0.0f;
  }

  Index rows() const { return groups.back().row + groups.back().padded; }
  const float* of(const Rows& g) const { return values.data() + g.offset; }
};

// A convolution's weight [out, in, kernel, kernel] in memory, and its gradient with equal strides.
struct Weight {
  const float* values;
  float* gradient;
  Index of_out, of_in, of_tap;  // strides

  float at(Index out, Index in, Index tap) const { return values[out * of_out + in * of_in + tap * of_tap]; }
};
