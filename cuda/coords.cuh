// Voxels as packed keys, on the device: bounds, layout, packing and search, with the layout of
// pointlib/ops/coords.py.
#pragma once

#include "types.cuh"

namespace pointlib {

constexpr uint64_t SIGN = uint64_t{1} << 63;

// Bounds are gathered as unsigned maxima, of which zeroed memory is the start: 4 of the lowest and
// 4 of the highest batch, x, y, z, both inclusive. Behind them stands 1 where a voxel comes twice.
constexpr int BOUNDS = 8;
constexpr int REPEATS = 8;

__device__ inline uint64_t encode_low(int64_t value) {
  return ~(static_cast<uint64_t>(value) ^ SIGN);
}
__device__ inline uint64_t encode_high(int64_t value) {
  return static_cast<uint64_t>(value) ^ SIGN;
}

struct Box {
  int64_t low[4], high[4];

  __device__ explicit Box(const uint64_t* bounds) {
    for (int axis = 0; axis < 4; axis++) {
      low[axis] = static_cast<int64_t>(~bounds[axis] ^ SIGN);
      high[axis] = static_cast<int64_t>(bounds[4 + axis] ^ SIGN);
    }
  }
  __device__ bool holds(int axis, int64_t value) const {
    return value >= low[axis] && value <= high[axis];
  }
  __device__ void store(uint64_t* bounds) const {
    for (int axis = 0; axis < 4; axis++) {
      bounds[axis] = encode_low(low[axis]);
      bounds[4 + axis] = encode_high(high[axis]);
    }
  }
};

// How a voxel inside a box is packed. Boxes that need more than 63 bits give nonsense, which is
// never used: the host refuses them when it reads the counts.
struct Layout {
  int64_t lower[4];
  int shift[4];
  int bits;

  __device__ explicit Layout(const Box& box) {
    bits = 0;
    for (int axis = 3; axis >= 0; axis--) {
      lower[axis] = box.low[axis];
      shift[axis] = min(bits, 63);
      const uint64_t extent =
          static_cast<uint64_t>(box.high[axis]) - static_cast<uint64_t>(box.low[axis]);
      bits += 64 - __clzll(static_cast<int64_t>(extent));
    }
  }
  __device__ int64_t pack(int64_t batch, int64_t x, int64_t y, int64_t z) const {
    return static_cast<int64_t>(field(0, batch) + field(1, x) + field(2, y) + field(3, z));
  }
  __device__ void unpack(int64_t key, int64_t (&voxel)[4]) const {
    uint64_t rest = static_cast<uint64_t>(key);
    for (int axis = 0; axis < 4; axis++) {
      const uint64_t at = rest >> shift[axis];
      rest -= at << shift[axis];
      voxel[axis] = static_cast<int64_t>(at + static_cast<uint64_t>(lower[axis]));
    }
  }

 private:
  __device__ uint64_t field(int axis, int64_t value) const {
    return (static_cast<uint64_t>(value) - static_cast<uint64_t>(lower[axis])) << shift[axis];
  }
};

// The lowest and highest of what the threads of a block hold, added to `bounds`. All of its threads
// must come here; they share 8 numbers a warp.
__device__ inline void gather_bounds(uint64_t (&own)[BOUNDS], uint64_t* shared, uint64_t* bounds) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int i = 0; i < BOUNDS; i++) {
    for (int step = WARP / 2; step > 0; step /= 2) {
      own[i] = max(own[i], __shfl_xor_sync(ALL_LANES, own[i], step));
    }
    if (lane == 0) shared[warp * BOUNDS + i] = own[i];
  }
  __syncthreads();
  if (threadIdx.x < BOUNDS) {
    uint64_t all = 0;
    for (int from = 0; from < static_cast<int>(blockDim.x) / WARP; from++) {
      all = max(all, shared[from * BOUNDS + threadIdx.x]);
    }
    atomicMax(bounds + threadIdx.x, all);
  }
}

// The first place among ascending keys that is not below the key; count where all are.
__device__ inline int64_t lower_bound(const int64_t* __restrict__ keys, int64_t count,
                                      int64_t key) {
  int64_t first = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool below = __ldg(keys + first + half) < key;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

// Whether ascending keys change at i. Negative ones may stand for nothing.
__device__ inline bool is_first(const int64_t* __restrict__ keys, int64_t i) {
  return i == 0 || keys[i] != keys[i - 1];
}

}  // namespace pointlib
