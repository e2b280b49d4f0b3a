// The outputs of a convolution as distinct sorted keys: floor(in / stride), or every voxel that
// some tap reaches, forward or, for a generative convolution, backward.
#include <limits>
#include <stdexcept>
#include <vector>

#include "engine.h"
#include "maps.h"

namespace pointlib {

void Geometry::check() const {
  for (int axis = 0; axis < 3; axis++) {
    const int64_t largest = std::max({stride[axis], padding[axis], dilation[axis]});
    const int64_t smallest = std::min({stride[axis], padding[axis] + 1, dilation[axis]});
    if (kernel_size[axis] < 1 || kernel_size[axis] > MAX_TAPS || smallest < 1 ||
        largest > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument(
          "kernel_size must be 1 to 7, stride and dilation 1 to 2^31 - 1, "
          "padding 0 to 2^31 - 1");
    }
  }
}

bool Report::accept(const Box& box, const Layout& layout) {
  std::copy(box.low, box.low + 4, low);
  std::copy(box.high, box.high + 4, high);
  status = layout.fits() ? FINE : TOO_WIDE;
  return status == FINE;
}

namespace {

struct Sites {
  Layout layout;
  Buffer<Key> keys;
  int64_t count;
};

// floor(value / divisor), and what is left over.
struct Quotient {
  int64_t whole, rest;
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
  Quotient divide(int64_t value) const {
    const int64_t whole = floor(value);
    return {whole, value - whole * value_};
  }

 private:
  int64_t value_;
  int shift_;
  bool is_power_;
};

std::unique_ptr<Sites> floor_sites(const int32_t* coords, int64_t rows, const Geometry& geometry,
                                   int64_t threads, Report* report) {
  const int64_t* stride = geometry.stride;
  const Divisor by[3] = {Divisor(stride[0]), Divisor(stride[1]), Divisor(stride[2])};
  Box box = bounds(coords, rows, threads);
  for (int axis = 0; axis < 3; axis++) {
    box.low[axis + 1] = by[axis].floor(box.low[axis + 1]);
    box.high[axis + 1] = by[axis].floor(box.high[axis + 1]);
  }
  const Layout layout(box);
  if (!report->accept(box, layout)) return nullptr;
  const int64_t unit[3] = {1, 1, 1}, none[3] = {0, 0, 0};
  const Packing key_of(layout, unit, none);
  auto sites = std::unique_ptr<Sites>(new Sites{layout, uninitialized<Key>(rows), 0});
  const Blocks blocks = blocks_of(rows);
  for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
    for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
      const int32_t* at = coords + 4 * i;
      sites->keys[i] = key_of(at[0], by[0].floor(at[1]), by[1].floor(at[2]), by[2].floor(at[3]));
    }
  });
  sites->count = sort_distinct(sites->keys, rows, layout.bits, threads);
  return sites;
}

// What the taps of one axis make of a coordinate.
class Axis {
 public:
  int64_t hits[MAX_TAPS];
  int number = 0;

  // Coordinates that taps lead to or come from; `shape` < 0 is no bound.
  Axis(const Geometry& geometry, int axis, bool generative, int64_t shape)
      : stride_(geometry.stride[axis]),
        padding_(geometry.padding[axis]),
        shape_(shape),
        size_(static_cast<int>(geometry.kernel_size[axis])),
        generative_(generative),
        by_(stride_) {
    for (int tap = 0; tap < size_; tap++) {
      offsets_[tap] = geometry.dilation[axis] * tap;
      divided_[tap] = by_.divide(offsets_[tap]);
    }
  }

  void reach(int64_t at) {
    number = 0;
    if (generative_) {
      for (int tap = 0; tap < size_; tap++) {
        hits[number++] = stride_ * at + offsets_[tap] - padding_;
      }
      return;
    }
    // at + padding - offset is a multiple of the stride where both leave the same rest.
    const Quotient first = by_.divide(at + padding_);
    for (int tap = 0; tap < size_; tap++) {
      const int64_t out = first.whole - divided_[tap].whole;
      const bool inside = shape_ < 0 || (out >= 0 && out < shape_);
      hits[number] = out;
      number += divided_[tap].rest == first.rest && inside;
    }
  }

 private:
  int64_t stride_, padding_, shape_;
  int size_;
  bool generative_;
  Divisor by_;
  int64_t offsets_[MAX_TAPS];
  Quotient divided_[MAX_TAPS];
};

class Reach {
 public:
  Reach(const int32_t* coords, int64_t rows, const Geometry& geometry, bool generative,
        const int64_t* shape)
      : coords_(coords),
        x_(axis(geometry, 0, generative, shape)),
        y_(axis(geometry, 1, generative, shape)),
        z_(axis(geometry, 2, generative, shape)),
        blocks_{rows, std::max<int64_t>(16, ROWS_PER_BLOCK / geometry.volume())} {}

  std::unique_ptr<Sites> search(int64_t threads, Report* report) const;

 private:
  static Axis axis(const Geometry& geometry, int number, bool generative, const int64_t* shape) {
    return Axis(geometry, number, generative, shape == nullptr ? -1 : shape[number]);
  }
  Box bounds_of_block(int64_t block) const;
  int64_t keys_of_block(int64_t block, const Packing& key_of, int bits, Buffer<Key>& keys) const;

  const int32_t* coords_;
  Axis x_, y_, z_;
  Blocks blocks_;
};

constexpr int64_t FURTHEST = std::numeric_limits<int64_t>::max();

// Of the voxels that the rows of a block reach; low > high if they reach none.
Box Reach::bounds_of_block(int64_t block) const {
  Axis axes[3] = {x_, y_, z_};
  Box box;
  std::fill(box.low, box.low + 4, FURTHEST);
  std::fill(box.high, box.high + 4, -FURTHEST);
  for (int64_t row = blocks_.begin(block); row < blocks_.end(block); row++) {
    for (int axis = 0; axis < 3; axis++) axes[axis].reach(coords_[4 * row + axis + 1]);
    if (axes[0].number == 0 || axes[1].number == 0 || axes[2].number == 0) continue;
    box.low[0] = std::min<int64_t>(box.low[0], coords_[4 * row]);
    box.high[0] = std::max<int64_t>(box.high[0], coords_[4 * row]);
    for (int axis = 0; axis < 3; axis++) {
      for (int hit = 0; hit < axes[axis].number; hit++) {
        box.low[axis + 1] = std::min(box.low[axis + 1], axes[axis].hits[hit]);
        box.high[axis + 1] = std::max(box.high[axis + 1], axes[axis].hits[hit]);
      }
    }
  }
  return box;
}

// Distinct, ascending.
int64_t Reach::keys_of_block(int64_t block, const Packing& key_of, int bits,
                             Buffer<Key>& keys) const {
  Axis x = x_, y = y_, z = z_;
  std::vector<Key> found;
  for (int64_t row = blocks_.begin(block); row < blocks_.end(block); row++) {
    const int32_t* at = coords_ + 4 * row;
    x.reach(at[1]);
    y.reach(at[2]);
    z.reach(at[3]);
    for (int i = 0; i < x.number; i++) {
      for (int j = 0; j < y.number; j++) {
        for (int k = 0; k < z.number; k++) {
          found.push_back(key_of(at[0], x.hits[i], y.hits[j], z.hits[k]));
        }
      }
    }
  }
  const int64_t count = static_cast<int64_t>(found.size());
  keys = uninitialized<Key>(count);
  std::copy(found.begin(), found.end(), keys.get());
  return sort_distinct(keys, count, bits, 1);
}

std::unique_ptr<Sites> Reach::search(int64_t threads, Report* report) const {
  const int64_t number = blocks_.number();
  std::vector<Box> boxes(static_cast<size_t>(number));
  for_blocks(number, threads, [&](int64_t block, int64_t) {
    boxes[static_cast<size_t>(block)] = bounds_of_block(block);
  });
  Box box = boxes[0];
  for (const Box& part : boxes) box.cover(part);
  if (box.low[0] > box.high[0]) box = Box{};  // no voxel is reached
  const Layout layout(box);
  report->accept(box, layout);
  const int64_t lowest = *std::min_element(box.low, box.low + 4);
  const int64_t highest = *std::max_element(box.high, box.high + 4);
  if (lowest < std::numeric_limits<int32_t>::min() ||
      highest > std::numeric_limits<int32_t>::max()) {
    report->status = BEYOND_INT32;
  }
  if (report->status != FINE) return nullptr;

  const int64_t unit[3] = {1, 1, 1}, none[3] = {0, 0, 0};
  const Packing key_of(layout, unit, none);
  std::vector<Buffer<Key>> parts(static_cast<size_t>(number));
  std::vector<int64_t> places(parts.size() + 1);
  for_blocks(number, threads, [&](int64_t block, int64_t) {
    const size_t part = static_cast<size_t>(block);
    places[part + 1] = keys_of_block(block, key_of, layout.bits, parts[part]);
  });
  for (size_t part = 0; part < parts.size(); part++) places[part + 1] += places[part];
  const int64_t total = places.back();
  auto sites = std::unique_ptr<Sites>(new Sites{layout, uninitialized<Key>(total), 0});
  for_blocks(number, threads, [&](int64_t block, int64_t) {
    const size_t part = static_cast<size_t>(block);
    const int64_t count = places[part + 1] - places[part];
    std::copy(parts[part].get(), parts[part].get() + count, sites->keys.get() + places[part]);
    parts[part].reset();
  });
  sites->count = sort_distinct(sites->keys, total, layout.bits, threads);
  return sites;
}

int64_t hand_over(std::unique_ptr<Sites> sites, int64_t* count) {
  if (sites == nullptr) return 0;
  *count = sites->count;
  return reinterpret_cast<int64_t>(sites.release());
}

}  // namespace

}  // namespace pointlib

using namespace pointlib;

// Outputs floor(in / stride) of coords (rows, 4), rows > 0. Returns a handle for pl_sites_write and
// pl_sites_free and writes how many there are; or returns 0 and the report tells why not.
POINTLIB_API int64_t pl_floor_sites(const int32_t* coords, int64_t rows, const Geometry* geometry,
                                    int64_t threads, int64_t* count, Report* report) {
  return guarded([&]() -> int64_t {
    geometry->check();
    return hand_over(floor_sites(coords, rows, *geometry, threads, report), count);
  });
}

// Every output in [0, shape) that a tap reaches (shape may be null for no bound), or, if
// generative, every input that a tap of these outputs reads.
POINTLIB_API int64_t pl_reached_sites(const int32_t* coords, int64_t rows, const Geometry* geometry,
                                      int64_t generative, const int64_t* shape, int64_t threads,
                                      int64_t* count, Report* report) {
  return guarded([&]() -> int64_t {
    geometry->check();
    const Reach reach(coords, rows, *geometry, generative != 0, shape);
    return hand_over(reach.search(threads, report), count);
  });
}

// Writes the sites as coords (count, 4) in lexicographic order.
POINTLIB_API int64_t pl_sites_write(const void* handle, int32_t* coords, int64_t threads) {
  return guarded([&]() -> int64_t {
    const Sites& sites = *static_cast<const Sites*>(handle);
    unpack(sites.keys.get(), sites.count, sites.layout, coords, threads);
    return 0;
  });
}

POINTLIB_API int64_t pl_sites_free(const void* handle) {
  delete static_cast<const Sites*>(handle);
  return 0;
}
