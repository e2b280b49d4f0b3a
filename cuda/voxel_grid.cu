// Rows of dense grids of voxels, (B, R, R, R) laid end to end, under and around points: what
// average voxelization and trilinear devoxelization then sum features by. Coordinates (B, 3, N) are
// planes: x of all points of a cloud, then y, then z.
#include "types.cuh"

namespace pointlib {

// rows (B * N,): the voxel of each point, -1 outside the grid; held (B * R^3,), zeros before: the
// points of each voxel.
__global__ void cell_rows(const int32_t* __restrict__ cells, int64_t points, int64_t count,
                          int64_t resolution, int64_t* __restrict__ rows,
                          int32_t* __restrict__ held) {
  const int64_t point = global_thread();
  if (point >= points) return;
  const int64_t cloud = point / count;
  const int32_t* at = cells + point + cloud * 2 * count;
  const int64_t x = at[0], y = at[count], z = at[2 * count];
  int64_t row = -1;
  if (min(x, min(y, z)) >= 0 && max(x, max(y, z)) < resolution) {
    row = ((cloud * resolution + x) * resolution + y) * resolution + z;
    atomicAdd(held + row, 1);  // of integers: the order does not matter
  }
  rows[point] = row;
}

// count (B * N,): the points of each point's voxel; 1 for a point outside the grid.
__global__ void cell_counts(const int64_t* __restrict__ rows, int64_t points,
                            const int32_t* __restrict__ held, int32_t* __restrict__ count) {
  const int64_t point = global_thread();
  if (point >= points) return;
  const int64_t row = rows[point];
  count[point] = row < 0 ? 1 : held[row];
}

// rows and weights (B * N, 8): the corners {0, 1}^3 around each point, x slowest; -1 and 0 outside
// the grid, and -1 where the weight is 0. A thread has a corner.
__global__ void trilinear_corners(const float* __restrict__ coords, int64_t points, int64_t count,
                                  int64_t resolution, int64_t* __restrict__ rows,
                                  float* __restrict__ weights) {
  const int64_t entry = global_thread();
  if (entry >= points * 8) return;
  const int64_t point = entry / 8, cloud = point / count;
  const float* at = coords + point + cloud * 2 * count;
  float weight = 1;
  int64_t row = cloud;
#pragma unroll
  for (int axis = 0; axis < 3; axis++) {
    const float place = at[axis * count], low = floorf(place);
    const bool upper = entry >> (2 - axis) & 1;
    const float corner = upper ? low + 1 : low;
    const bool inside = corner >= 0 && corner < static_cast<float>(resolution);  // not of NaN
    weight *= inside ? (upper ? place - low : 1 - (place - low)) : 0;
    row = row * resolution + (inside ? static_cast<int64_t>(corner) : 0);
  }
  rows[entry] = weight == 0 ? -1 : row;
  weights[entry] = weight;
}

}  // namespace pointlib
