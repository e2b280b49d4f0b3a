// Keys of voxels: bounds and packing, distinct keys, and the rows of wanted keys. Sorting and
// prefix sums are torch's.
#include "coords.cuh"

namespace pointlib {

// Adds coords (rows, 4) to bounds (8,); only the first *live of them unless that is null. Blocks
// share 64 bytes a warp.
__global__ void bound_voxels(const int4* __restrict__ coords, int64_t rows,
                             const int64_t* __restrict__ live, uint64_t* __restrict__ bounds) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  if (live != nullptr) rows = min(rows, *live);
  uint64_t own[BOUNDS] = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = global_thread(); row < rows; row += stride) {
    const int4 voxel = coords[row];
    const int64_t at[4] = {voxel.x, voxel.y, voxel.z, voxel.w};
    for (int axis = 0; axis < 4; axis++) {
      own[axis] = max(own[axis], encode_low(at[axis]));
      own[4 + axis] = max(own[4 + axis], encode_high(at[axis]));
    }
  }
  gather_bounds(own, reinterpret_cast<uint64_t*>(shared_memory), bounds);
}

__global__ void pack_voxels(const int4* __restrict__ coords, int64_t rows,
                            const uint64_t* __restrict__ bounds, int64_t* __restrict__ keys) {
  const int64_t row = global_thread();
  if (row >= rows) return;
  const int4 voxel = coords[row];
  keys[row] = Layout(Box(bounds)).pack(voxel.x, voxel.y, voxel.z, voxel.w);
}

__global__ void unpack_voxels(const int64_t* __restrict__ keys, int64_t count,
                              const uint64_t* __restrict__ bounds, int4* __restrict__ coords) {
  const int64_t i = global_thread();
  if (i >= count) return;
  int64_t at[4];
  Layout(Box(bounds)).unpack(keys[i], at);
  coords[i] = make_int4(static_cast<int>(at[0]), static_cast<int>(at[1]), static_cast<int>(at[2]),
                        static_cast<int>(at[3]));
}

// The row of each sorted key as int32, and whether a key comes twice.
__global__ void take_order(const int64_t* __restrict__ keys, const int64_t* __restrict__ rows,
                           int64_t count, int32_t* __restrict__ order,
                           uint64_t* __restrict__ bounds) {
  const int64_t i = global_thread();
  if (i >= count) return;
  order[i] = static_cast<int32_t>(rows[i]);
  if (!is_first(keys, i)) atomicMax(bounds + REPEATS, uint64_t{1});
}

// flags[i]: whether ascending keys change at i; never at negative ones if those are absent.
__global__ void mark_firsts(const int64_t* __restrict__ keys, int64_t count,
                            int64_t negative_is_absent, int32_t* __restrict__ flags) {
  const int64_t i = global_thread();
  if (i >= count) return;
  flags[i] = is_first(keys, i) && !(negative_is_absent && keys[i] < 0);
}

// Of ascending keys, the row of each and the number of distinct keys up to it: the distinct keys,
// the place of each row's key among them, the first row of each, and where each starts (one more).
__global__ void write_distinct(const int64_t* __restrict__ keys, const int64_t* __restrict__ rows,
                               const int32_t* __restrict__ places, int64_t count,
                               int64_t* __restrict__ distinct, int64_t* __restrict__ inverse,
                               int64_t* __restrict__ first, int64_t* __restrict__ starts) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const int64_t place = places[i] - 1, row = rows[i];
  inverse[row] = place;
  if (is_first(keys, i)) {
    distinct[place] = keys[i];
    first[place] = row;
    starts[place] = i;
  }
  if (i == count - 1) starts[place + 1] = count;
}

// found[i]: the row of the first key that equals query[i], or -1.
__global__ void find_rows(const int64_t* __restrict__ query, int64_t wanted,
                          const int64_t* __restrict__ keys, const int64_t* __restrict__ rows,
                          int64_t count, int64_t* __restrict__ found) {
  const int64_t i = global_thread();
  if (i >= wanted) return;
  const int64_t at = lower_bound(keys, count, query[i]);
  found[i] = at < count && keys[at] == query[i] ? rows[at] : -1;
}

// found[i]: the first row of the sorted voxels that equals query[i]; what it holds before if there
// is none. Order may be null: then row i has key i.
__global__ void find_voxels(const int4* __restrict__ query, int64_t wanted,
                            const int64_t* __restrict__ keys, const int32_t* __restrict__ order,
                            int64_t count, const uint64_t* __restrict__ bounds,
                            int64_t* __restrict__ found) {
  const int64_t i = global_thread();
  if (i >= wanted) return;
  const int4 voxel = query[i];
  const Box box(bounds);
  if (!box.holds(0, voxel.x) || !box.holds(1, voxel.y) || !box.holds(2, voxel.z) ||
      !box.holds(3, voxel.w)) {
    return;
  }
  const int64_t key = Layout(box).pack(voxel.x, voxel.y, voxel.z, voxel.w);
  const int64_t at = lower_bound(keys, count, key);
  if (at < count && keys[at] == key) found[i] = order == nullptr ? at : order[at];
}

}  // namespace pointlib
