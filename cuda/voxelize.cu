// Devoxelization: the voxels around each point, and its weighted sum of their rows.
#include "coords.cuh"
#include "rows.cuh"

namespace pointlib {

// out[n] = sum over k < corners of weights[n, k] * src[index[n, k]], in the order of k. A voxel of
// index -1 or weight 0 is not read. `inside` (unless null) was true, and becomes false where an
// index is neither -1 nor in [0, num_in).
template <class T, int N>
__global__ void __launch_bounds__(256, BLOCKS<N>)
    devoxelize(const T* __restrict__ src, int64_t num_in, int64_t vectors,
               const int64_t* __restrict__ index, const accumulator<T>* __restrict__ weights,
               int64_t points, int64_t corners, int64_t lanes, T* __restrict__ out,
               bool* __restrict__ inside) {
  const Lanes at(lanes, vectors);
  const int64_t point = static_cast<int64_t>(blockIdx.x) * at.groups + at.group;
  if (!at.active || point >= points) return;
  accumulator<T> total[N];
#pragma unroll
  for (int c = 0; c < N; c++) total[c] = 0;
  constexpr int AHEAD = 4;  // rows on their way at once
  for (int64_t first = 0; first < corners; first += AHEAD) {
    int64_t row[AHEAD];
    accumulator<T> weight[AHEAD];
    Pack<T, N> values[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      const bool given = first + k < corners;
      const int64_t corner = point * corners + first + k;
      row[k] = given ? index[corner] : -1;
      weight[k] = given ? weights[corner] : 0;
      if (inside != nullptr && (row[k] < -1 || row[k] >= num_in)) *inside = false;
      if (row[k] >= num_in || weight[k] == 0) row[k] = -1;
    }
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
      if (row[k] >= 0) values[k] = load<N>(src, row[k] * vectors + at.vector);
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      if (row[k] < 0) continue;
#pragma unroll
      for (int c = 0; c < N; c++) total[c] += weight[k] * widen(values[k].at[c]);
    }
  }
  Pack<T, N> values;
#pragma unroll
  for (int c = 0; c < N; c++) values.at[c] = narrow<T>(total[c]);
  store(out, point * vectors + at.vector, values);
}

constexpr int COLUMNS = 4;  // (x, y) columns of voxels around a point, a thread each

__device__ inline float floor_of(float value) { return floorf(value); }
__device__ inline double floor_of(double value) { return floor(value); }

// The sum over the threads of a point, the same for each.
template <class T>
__device__ inline T sum_of_columns(T value) {
  value += __shfl_xor_sync(ALL_LANES, value, 1);
  return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// Rows of the voxels floor(xyz) + {0, 1}^3 of points (count, 4), x slowest, -1 where there is none
// or its weight is 0 (but for the first), and trilinear weights that add up to 1 over the present
// ones. Voxels are given by their sorted keys; `order` may be null as in kernel_map.cu. `valid` was
// true, and becomes false where a point is no voxel of int32 or a voxel comes twice.
template <class T>
__global__ void __launch_bounds__(256, 4)
    trilinear_corners(const T* __restrict__ points, int64_t count, const int64_t* __restrict__ keys,
                      const int32_t* __restrict__ order, int64_t num_voxels,
                      const uint64_t* __restrict__ bounds, int64_t* __restrict__ corners,
                      T* __restrict__ weights, bool* __restrict__ valid) {
  const int64_t point = global_thread() / COLUMNS;
  const int column = static_cast<int>(threadIdx.x) % COLUMNS;
  int64_t lower_row = -1, upper_row = -1;  // along z
  T lower_weight = 0, upper_weight = 0;
  bool fits = point < count;
  int64_t cell[4] = {0, 0, 0, 0};
  T share[3] = {0, 0, 0};  // of this thread's x and y, and of the lower z
  for (int axis = 0; axis < 4 && point < count; axis++) {
    const T value = points[4 * point + axis];
    const T base = axis == 0 ? value : floor_of(value);
    fits = fits && base > -2147483648.0 && base < 2147483648.0;
    if (!fits) break;
    cell[axis] = static_cast<int64_t>(base);
    if (axis == 0) continue;
    const int up = axis == 1 ? column / 2 : axis == 2 ? column % 2 : 0;
    share[axis - 1] = up == 1 ? value - base : base + 1 - value;
    cell[axis] += up;
    if (axis == 3) {
      const T area = share[0] * share[1];
      lower_weight = area * share[2];
      upper_weight = area * (value - base);
    }
  }
  if (point < count && (!fits || bounds[REPEATS] != 0)) *valid = false;
  const bool want_lower = fits && (column == 0 || lower_weight != 0);
  const bool want_upper = fits && upper_weight != 0;
  if (want_lower || want_upper) {
    const Box box(bounds);
    const int64_t low = max(cell[3], box.low[3]), high = min(cell[3] + 1, box.high[3]);
    if (box.holds(0, cell[0]) && box.holds(1, cell[1]) && box.holds(2, cell[2]) && low <= high) {
      const int64_t first = Layout(box).pack(cell[0], cell[1], cell[2], low);
      const int64_t last = first + (high - low), start = lower_bound(keys, num_voxels, first);
      for (int64_t i = start; i < min(num_voxels, start + 2) && keys[i] <= last; i++) {
        const bool is_lower = keys[i] - first + low == cell[3];
        const int64_t row = order == nullptr ? i : order[i];
        if (is_lower && want_lower) lower_row = row;
        if (!is_lower && want_upper) upper_row = row;
      }
    }
  }
  if (lower_row < 0) lower_weight = 0;
  if (upper_row < 0) upper_weight = 0;
  const T total = sum_of_columns(lower_weight + upper_weight) + static_cast<T>(1e-8);
  if (point >= count) return;
  const Pack<int64_t, 2> rows = {{lower_row, upper_row}};
  const Pack<T, 2> parts = {{lower_weight / total, upper_weight / total}};
  store(corners, COLUMNS * point + column, rows);
  store(weights, COLUMNS * point + column, parts);
}

}  // namespace pointlib
