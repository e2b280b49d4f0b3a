// The outputs of a strided convolution, floor(in / stride), and what is exported of the sites that
// convolutions lead to.
#include <limits>
#include <stdexcept>

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
  auto sites = std::unique_ptr<Sites>(new Sites{layout, scratch<Key>(rows), 0});
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
    return hand_over(
        reached_sites(coords, rows, *geometry, generative != 0, shape, threads, report), count);
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
