// Kernel maps: one search for each (x, y) column of taps, then a walk along z, the lowest field of
// a key.
//
// Outputs are taken in the order of their keys. A first pass stores where each output's column
// starts among the inputs' keys and which of its taps are there, and counts the taps block by
// block; once the counts are summed, a second pass writes every pair to its place. The index
// relation is in = stride * out + dilation * tap - padding.
#include "kernel_map.cuh"

namespace pointlib {

// Of x, y, z; pointlib/ops/_cuda/kernel_map.py passes these fields in this order.
struct Geometry {
  int64_t size[3], stride[3], padding[3], dilation[3];
};

// For every column (the blocks' y) of every output: the place of its first input among the sorted
// keys, and a bit for each tap that has one. counts (taps, blocks) of 0 and pairs: those of a tap
// in a block of outputs stand behind it.
__global__ void search_columns(const int64_t* __restrict__ in_keys, int64_t num_in,
                               const uint64_t* __restrict__ in_bounds,
                               const int64_t* __restrict__ out_keys, int64_t num_out,
                               const uint64_t* __restrict__ out_bounds, int64_t size_x,
                               int64_t size_y, int64_t size_z, int64_t stride_x, int64_t stride_y,
                               int64_t stride_z, int64_t padding_x, int64_t padding_y,
                               int64_t padding_z, int64_t dilation_x, int64_t dilation_y,
                               int64_t dilation_z, int64_t symmetric, int32_t* __restrict__ starts,
                               uint8_t* __restrict__ present, int64_t* __restrict__ counts) {
  const int64_t size[3] = {size_x, size_y, size_z};
  const Column column(size, dilation_z == 1, symmetric, blockIdx.y);
  const int64_t out = global_thread();
  Found found = {0, 0};
  if (out < num_out && column.depth > 0) {
    int64_t at[4];
    Layout(Box(out_bounds)).unpack(out_keys[out], at);
    found = find_column(in_keys, num_in, Box(in_bounds), at[0],
                        stride_x * at[1] - padding_x + dilation_x * column.x,
                        stride_y * at[2] - padding_y + dilation_y * column.y,
                        stride_z * at[3] - padding_z + dilation_z * column.z, column.depth);
  }
  if (out < num_out) {
    const int64_t at = blockIdx.y * num_out + out;
    if (found.bits != 0) starts[at] = static_cast<int32_t>(found.start);
    present[at] = static_cast<uint8_t>(found.bits);
  }

  if (global_thread() == 0 && blockIdx.y == 0) counts[0] = 0;
  count_pairs(column, found.bits, min(num_out - out + threadIdx.x, int64_t{blockDim.x}), symmetric,
              counts + 1 + blockIdx.x, gridDim.x);
}

// Writes the pairs that search_columns found to their places; `places` are the sums of its counts.
// Blocks have as many threads as there, and share 32 bytes a warp. Orders may be null: then the
// rows are sorted already.
__global__ void write_pairs(const int32_t* __restrict__ in_order,
                            const int32_t* __restrict__ out_order,
                            const int32_t* __restrict__ starts, const uint8_t* __restrict__ present,
                            const int64_t* __restrict__ places, int64_t num_out, int64_t size_x,
                            int64_t size_y, int64_t size_z, int64_t contiguous, int64_t symmetric,
                            int32_t* __restrict__ in_index, int32_t* __restrict__ out_index) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int64_t size[3] = {size_x, size_y, size_z};
  const Column column(size, contiguous, symmetric, blockIdx.y);
  const int64_t out = global_thread(), at = blockIdx.y * num_out + out;
  const uint32_t bits = out < num_out ? present[at] : 0;
  const Found found = {bits == 0 ? 0 : starts[at], bits};
  place_pairs(column, found, out, out < num_out, in_order, out_order, symmetric,
              places + blockIdx.x, gridDim.x, reinterpret_cast<int32_t*>(shared_memory), in_index,
              out_index);
}

// Keys of floor(in / stride), and their bounds from those of the inputs.
__global__ void pack_floors(const int4* __restrict__ coords, int64_t rows,
                            const uint64_t* __restrict__ in_bounds, int64_t stride_x,
                            int64_t stride_y, int64_t stride_z, uint64_t* __restrict__ bounds,
                            int64_t* __restrict__ keys) {
  const int64_t row = global_thread();
  if (row >= rows) return;
  const int64_t stride[3] = {stride_x, stride_y, stride_z};
  const Box box = floor_box(in_bounds, stride);
  if (row == 0) box.store(bounds);
  const int4 voxel = coords[row];
  keys[row] = Layout(box).pack(voxel.x, floor_divide(voxel.y, stride_x),
                               floor_divide(voxel.z, stride_y), floor_divide(voxel.w, stride_z));
}

// What the taps do to the coordinates of one axis: from inputs to outputs inside [begin, end), or,
// if generative, from outputs to the inputs they read.
struct Reach {
  int64_t size, stride, padding, dilation, begin, end;
  bool generative;

  __device__ bool leads(int64_t at, int64_t tap, int64_t* out) const {
    if (generative) {
      *out = stride * at + dilation * tap - padding;
      return true;
    }
    const int64_t moved = at + padding - dilation * tap;
    *out = floor_divide(moved, stride);
    return *out * stride == moved && *out >= begin && *out < end;
  }
  // Where the tap leads that is the `number`th to lead anywhere.
  __device__ bool leads_by(int64_t at, int64_t number, int64_t* out) const {
    for (int64_t tap = 0; tap < size; tap++) {
      if (leads(at, tap, out) && number-- == 0) return true;
    }
    return false;
  }
};

struct Reaches {
  Reach axis[3];

  // `ends`: the outputs' extent, or negative for none.
  __device__ Reaches(const Geometry& geometry, bool generative, const int64_t (&ends)[3]) {
    constexpr int64_t furthest = 0x7fffffffffffffff;
    for (int i = 0; i < 3; i++) {
      const bool bounded = ends[i] >= 0;
      axis[i] = {geometry.size[i],
                 geometry.stride[i],
                 geometry.padding[i],
                 geometry.dilation[i],
                 bounded ? 0 : -furthest,
                 bounded ? ends[i] : furthest,
                 generative};
    }
  }
};

// Adds all that the taps reach from coords (rows, 4) to bounds (8,). Blocks share 64 bytes a warp.
__global__ void __launch_bounds__(256, 2)
    bound_reached(const int4* __restrict__ coords, int64_t rows, int64_t size_x, int64_t size_y,
                  int64_t size_z, int64_t stride_x, int64_t stride_y, int64_t stride_z,
                  int64_t padding_x, int64_t padding_y, int64_t padding_z, int64_t dilation_x,
                  int64_t dilation_y, int64_t dilation_z, int64_t generative, int64_t end_x,
                  int64_t end_y, int64_t end_z, uint64_t* __restrict__ bounds) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Geometry geometry = {{size_x, size_y, size_z},
                             {stride_x, stride_y, stride_z},
                             {padding_x, padding_y, padding_z},
                             {dilation_x, dilation_y, dilation_z}};
  const Reaches reaches(geometry, generative, {end_x, end_y, end_z});
  uint64_t own[BOUNDS] = {};
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = global_thread(); row < rows; row += threads) {
    const int4 voxel = coords[row];
    const int64_t at[3] = {voxel.y, voxel.z, voxel.w};
    uint64_t reached[BOUNDS] = {encode_low(voxel.x), 0, 0, 0, encode_high(voxel.x), 0, 0, 0};
    bool leads = true;
    for (int i = 0; i < 3; i++) {
      bool leads_here = false;
      for (int64_t tap = 0; tap < geometry.size[i]; tap++) {
        int64_t out;
        if (!reaches.axis[i].leads(at[i], tap, &out)) continue;
        leads_here = true;
        reached[1 + i] = max(reached[1 + i], encode_low(out));
        reached[5 + i] = max(reached[5 + i], encode_high(out));
      }
      leads = leads && leads_here;
    }
    if (!leads) continue;
    for (int i = 0; i < BOUNDS; i++) own[i] = max(own[i], reached[i]);
  }
  gather_bounds(own, reinterpret_cast<uint64_t*>(shared_memory), bounds);
}

// Keys (candidates, rows) of all that the taps reach, -1 where there is none; the blocks' y is the
// candidate, and on each axis there are `most` of them.
__global__ void pack_reached(const int4* __restrict__ coords, int64_t rows, int64_t size_x,
                             int64_t size_y, int64_t size_z, int64_t stride_x, int64_t stride_y,
                             int64_t stride_z, int64_t padding_x, int64_t padding_y,
                             int64_t padding_z, int64_t dilation_x, int64_t dilation_y,
                             int64_t dilation_z, int64_t generative, int64_t end_x, int64_t end_y,
                             int64_t end_z, const uint64_t* __restrict__ bounds, int64_t most_y,
                             int64_t most_z, int64_t* __restrict__ keys) {
  const int64_t row = global_thread();
  if (row >= rows) return;
  const Geometry geometry = {{size_x, size_y, size_z},
                             {stride_x, stride_y, stride_z},
                             {padding_x, padding_y, padding_z},
                             {dilation_x, dilation_y, dilation_z}};
  const Reaches reaches(geometry, generative, {end_x, end_y, end_z});
  const int4 voxel = coords[row];
  const int64_t number = blockIdx.y;
  int64_t x, y, z;
  const bool leads = reaches.axis[0].leads_by(voxel.y, number / (most_y * most_z), &x) &&
                     reaches.axis[1].leads_by(voxel.z, number / most_z % most_y, &y) &&
                     reaches.axis[2].leads_by(voxel.w, number % most_z, &z);
  keys[number * rows + row] = leads ? Layout(Box(bounds)).pack(voxel.x, x, y, z) : -1;
}

// Of ascending keys and the number of distinct ones up to each: the distinct ones, and their
// voxels.
__global__ void write_sites(const int64_t* __restrict__ keys, const int32_t* __restrict__ places,
                            int64_t count, const uint64_t* __restrict__ bounds,
                            int64_t* __restrict__ distinct, int4* __restrict__ coords) {
  const int64_t i = global_thread();
  if (i >= count || keys[i] < 0 || !is_first(keys, i)) return;
  int64_t at[4];
  Layout(Box(bounds)).unpack(keys[i], at);
  const int64_t place = places[i] - 1;
  distinct[place] = keys[i];
  coords[place] = make_int4(static_cast<int>(at[0]), static_cast<int>(at[1]),
                            static_cast<int>(at[2]), static_cast<int>(at[3]));
}

}  // namespace pointlib
