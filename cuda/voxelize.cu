// Devoxelization: each point's weighted sum of a few voxel rows.
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

}  // namespace pointlib
