// What a search of taps consists of: one column of them, found by one binary search and a walk
// along z, the lowest field of a key.
#pragma once

#include "coords.cuh"

namespace pointlib {

constexpr int MAX_DEPTH = 7;

__device__ inline int64_t floor_divide(int64_t value, int64_t divisor) {
  if ((divisor & (divisor - 1)) == 0) return value >> (__ffsll(divisor) - 1);
  return value / divisor - (value % divisor < 0);
}

// Bounds of floor(voxel / stride).
__device__ inline Box floor_box(const uint64_t* bounds, const int64_t (&stride)[3]) {
  Box box(bounds);
  for (int axis = 0; axis < 3; axis++) {
    box.low[axis + 1] = floor_divide(box.low[axis + 1], stride[axis]);
    box.high[axis + 1] = floor_divide(box.high[axis + 1], stride[axis]);
  }
  return box;
}

// Taps that one search serves: `depth` neighbours in z, or a single one where they are not
// neighbours. A symmetric map searches the columns before the central one and half of that; what it
// finds is mirrored.
struct Column {
  int64_t x, y, z, depth, first_tap, tap_step, volume;
  bool is_central;

  __device__ Column(const int64_t (&size)[3], bool contiguous, bool symmetric, int64_t number) {
    const int64_t parts = contiguous ? 1 : size[2], column = number / parts;
    x = column / size[1];
    y = column % size[1];
    z = number % parts;
    is_central = symmetric && column == size[0] * size[1] / 2;
    const int64_t end = is_central ? size[2] / 2 : size[2];
    depth = max(min(contiguous ? end : int64_t{1}, end - z), int64_t{0});
    is_central = is_central && z == 0;
    volume = size[0] * size[1] * size[2];
    const bool x_fastest = volume % 2 == 1;
    tap_step = x_fastest ? size[0] * size[1] : 1;
    first_tap = (x_fastest ? x + size[0] * y : size[2] * column) + z * tap_step;
  }
  __device__ int64_t tap(int64_t i) const { return first_tap + i * tap_step; }
  __device__ int64_t mirrored(int64_t i) const { return volume - 1 - tap(i); }
};

// The voxels (batch, x, y, z) to (batch, x, y, z + depth - 1) among ascending keys, which are
// packed for exactly this box: a bit for each that is there, and where the first of them stands.
struct Found {
  int64_t start;
  uint32_t bits;
};

__device__ inline Found find_column(const int64_t* __restrict__ keys, int64_t count, const Box& box,
                                    int64_t batch, int64_t x, int64_t y, int64_t z, int64_t depth) {
  Found found = {0, 0};
  const int64_t low = max(z, box.low[3]), high = min(z + depth - 1, box.high[3]);
  if (!box.holds(0, batch) || !box.holds(1, x) || !box.holds(2, y) || low > high) return found;
  const int64_t first = Layout(box).pack(batch, x, y, low), last = first + (high - low);
  found.start = lower_bound(keys, count, first);
  const int64_t end = min(count, found.start + depth);
  for (int64_t i = found.start; i < end; i++) {
    const int64_t key = __ldg(keys + i);
    if (key > last) break;
    found.bits |= 1u << ((key - first + low - z) & 31);
  }
  return found;
}

// Counts the taps that a block of outputs has in a column: those of tap k go to counts[k * stride].
// `rows` of its threads have an output; all must come here.
__device__ inline void count_pairs(const Column& column, uint32_t bits, int64_t rows,
                                   bool symmetric, int64_t* counts, int64_t stride) {
  for (int i = 0; i < column.depth; i++) {
    const int count = __syncthreads_count(bits >> i & 1);
    if (threadIdx.x != 0) continue;
    counts[column.tap(i) * stride] = count;
    if (symmetric) counts[column.mirrored(i) * stride] = count;
  }
  if (threadIdx.x == 0 && column.is_central) counts[column.volume / 2 * stride] = rows;
}

// Writes the pairs of a block of outputs in a column to where the sums of count_pairs say. Orders
// may be null: then the rows are sorted already. Blocks share 32 bytes a warp; all threads come
// here.
__device__ inline void place_pairs(const Column& column, Found found, int64_t out, bool is_output,
                                   const int32_t* in_order, const int32_t* out_order,
                                   bool symmetric, const int64_t* places, int64_t stride,
                                   int32_t* warp_counts, int32_t* in_index, int32_t* out_index) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const uint32_t lower = (1u << lane) - 1;
  uint32_t votes[MAX_DEPTH];
#pragma unroll
  for (int i = 0; i < MAX_DEPTH; i++) {
    if (i >= column.depth) continue;
    votes[i] = __ballot_sync(ALL_LANES, found.bits >> i & 1);
    if (lane == 0) warp_counts[warp * 8 + i] = __popc(votes[i]);
  }
  __syncthreads();
  if (!is_output) return;

  const int32_t row = out_order == nullptr ? static_cast<int32_t>(out) : out_order[out];
  if (column.is_central) {
    const int64_t place = places[column.volume / 2 * stride] + threadIdx.x;
    in_index[place] = row;
    out_index[place] = row;
  }
#pragma unroll
  for (int i = 0; i < MAX_DEPTH; i++) {
    if ((found.bits >> i & 1) == 0) continue;
    int64_t rank = __popc(votes[i] & lower);
    for (int before = 0; before < warp; before++) rank += warp_counts[before * 8 + i];
    const int64_t at = found.start++;
    const int32_t source = in_order == nullptr ? static_cast<int32_t>(at) : in_order[at];
    const int64_t place = places[column.tap(i) * stride] + rank;
    in_index[place] = source;
    out_index[place] = row;
    if (symmetric) {
      const int64_t mirror = places[column.mirrored(i) * stride] + rank;
      in_index[mirror] = row;
      out_index[mirror] = source;
    }
  }
}

}  // namespace pointlib
