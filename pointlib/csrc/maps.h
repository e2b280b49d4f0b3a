// What kernel maps and the sites they lead to share: the geometry of a convolution, and how a call
// tells Python what it found.
#pragma once

#include <memory>

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

// Distinct voxels as ascending keys.
struct Sites {
  Layout layout;
  Scratch<Key> keys;
  int64_t count;
};

// Divides by shifting where the divisor is a power of two.
class Divisor {
 public:
  explicit Divisor(int64_t value)
      : value_(value), shift_(bit_length(static_cast<uint64_t>(value)) - 1) {
    is_power_ = value == int64_t{1} << shift_;
  }
  int64_t floor(int64_t value) const {
    if (is_power_) return value >> shift_;
    return value / value_ - (value % value_ < 0);
  }

 private:
  int64_t value_;
  int shift_;
  bool is_power_;
};

// Every voxel in [0, shape) that a tap reaches (no shape, no bound), or, if generative, every voxel
// that a tap of these reads. Null if the report refuses.
std::unique_ptr<Sites> reached_sites(const int32_t* coords, int64_t rows, const Geometry& geometry,
                                     bool generative, const int64_t* shape, int64_t threads,
                                     Report* report);

}  // namespace pointlib
