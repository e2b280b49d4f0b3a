// What kernel maps and the sites they lead to share: the geometry of a convolution, and how a call
// tells Python what it found.
#pragma once

#include "keys.h"

namespace pointlib {

constexpr int64_t MAX_TAPS = 7;  // of an axis

// in = stride * out + dilation * tap - padding on x, y, z. pointlib/ops/_cpu/kernel_map.py has the
// same fields.
struct Geometry {
  int64_t kernel_size[3], stride[3], padding[3], dilation[3];

  // Throws where the fields are out of range.
  void check() const;
  int64_t volume() const { return kernel_size[0] * kernel_size[1] * kernel_size[2]; }
};

enum Status : int64_t { FINE = 0, REPEATED = 1, TOO_WIDE = 2, BEYOND_INT32 = 3 };

// Why a call refused its input, and the bounds of what it was given or led to.
struct Report {
  int64_t status, low[4], high[4];

  // Remembers the bounds; true if keys of that layout can be had.
  bool accept(const Box& box, const Layout& layout);
};

}  // namespace pointlib
