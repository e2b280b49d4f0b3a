// Keys of voxels: bounds, layout, packing and unpacking.
#include "keys.h"

#include <cstring>
#include <vector>

namespace pointlib {

namespace {

typedef int32_t Voxel __attribute__((vector_size(16)));

Voxel load(const int32_t* coords) {
  Voxel voxel;
  std::memcpy(&voxel, coords, sizeof voxel);
  return voxel;
}

}  // namespace

void Box::cover(const Box& other) {
  for (int axis = 0; axis < 4; axis++) {
    low[axis] = std::min(low[axis], other.low[axis]);
    high[axis] = std::max(high[axis], other.high[axis]);
  }
}

Box bounds(const int32_t* coords, int64_t rows, int64_t threads) {
  const Blocks blocks = blocks_of(rows);
  std::vector<Box> parts(static_cast<size_t>(blocks.number()));
  for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
    const int64_t begin = blocks.begin(block), end = blocks.end(block), half = (end - begin) / 2;
    Voxel low = load(coords + 4 * begin), high = low, low2 = low, high2 = low;  // two chains
    for (int64_t i = begin; i < begin + half; i++) {
      const Voxel voxel = load(coords + 4 * i), voxel2 = load(coords + 4 * (i + half));
      low = voxel < low ? voxel : low;
      high = voxel > high ? voxel : high;
      low2 = voxel2 < low2 ? voxel2 : low2;
      high2 = voxel2 > high2 ? voxel2 : high2;
    }
    const Voxel last = load(coords + 4 * (end - 1));
    low = low2 < low ? low2 : low;
    high = high2 > high ? high2 : high;
    low = last < low ? last : low;
    high = last > high ? last : high;
    for (int axis = 0; axis < 4; axis++) {
      parts[static_cast<size_t>(block)].low[axis] = low[axis];
      parts[static_cast<size_t>(block)].high[axis] = high[axis];
    }
  });
  Box all = parts[0];
  for (const Box& part : parts) all.cover(part);
  return all;
}

Layout::Layout(const Box& box) {
  int width[4];
  for (int axis = 0; axis < 4; axis++) {
    lower[axis] = box.low[axis];
    width[axis] =
        bit_length(static_cast<uint64_t>(box.high[axis]) - static_cast<uint64_t>(box.low[axis]));
  }
  bits = 0;
  for (int axis = 3; axis >= 0; axis--) {
    shift[axis] = bits;
    bits += width[axis];
  }
}

Packing::Packing(const Layout& layout, const int64_t* scale, const int64_t* shift) {
  start = Key{0} - (static_cast<Key>(layout.lower[0]) << layout.shift[0]);
  step[0] = Key{1} << layout.shift[0];
  for (int axis = 0; axis < 3; axis++) {
    const int left = layout.shift[axis + 1];
    start += (static_cast<Key>(shift[axis]) - static_cast<Key>(layout.lower[axis + 1])) << left;
    step[axis + 1] = static_cast<Key>(scale[axis]) << left;
  }
}

void unpack(const Key* keys, int64_t count, const Layout& layout, int32_t* coords,
            int64_t threads) {
  const Blocks blocks = blocks_of(count);
  for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
    for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
      Key rest = keys[i];
      for (int axis = 0; axis < 4; axis++) {
        const Key at = rest >> layout.shift[axis];
        rest -= at << layout.shift[axis];
        coords[4 * i + axis] = static_cast<int32_t>(static_cast<int64_t>(at) + layout.lower[axis]);
      }
    }
  });
}

}  // namespace pointlib
