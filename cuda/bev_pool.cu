// Bird's-eye pooling: features of frustum points, or products of their depth and their pixel's
// context that are never stored, added up cell by cell; and the gradients of those products. Every
// cell, and in the gradient every pixel, has one owner and one order of summation.
#include "rows.cuh"

namespace pointlib {

constexpr int BEV_WARPS = 8;   // of a block
constexpr int BEV_BLOCKS = 2;  // of a multiprocessor, at least: enough bytes in flight, no spills
constexpr int BEV_ROWS = 4;    // that a lane reads before it adds them
constexpr int BEV_LONG = 256;  // points above which all warps of a block share a cell
constexpr int BEV_DOTS = 8;    // points whose depth gradients are added up together

// The lanes of a warp as `slices` rows of `lanes` vectors from vector `first` on.
struct WarpLanes {
  int thread, lanes, slices, slice;
  int64_t vector;
  bool active;

  __device__ WarpLanes(int64_t lanes_of_row, int64_t first, int64_t vectors)
      : thread(static_cast<int>(threadIdx.x) % WARP),
        lanes(static_cast<int>(lanes_of_row)),
        slices(WARP / lanes),
        slice(thread / lanes) {
    vector = first + thread - slice * lanes;
    active = slice < slices && vector < vectors;
  }
  __device__ bool owns() const { return active && slice == 0; }
};

// What a cell is made of. Rows are in vectors of N channels. With LIFT, points are (images, depths,
// area), feats are the context of (images, area), and depth weighs them; otherwise feats have a row
// a point.
template <class T>
struct Frustum {
  const T* feats;
  const accumulator<T>* depth;
  const int* order;
  int64_t vectors;  // of a row
  int depths, area;
};

// Adds the points order[begin .. end), of which warp `warp` of `warps` takes every so-many-th 32.
template <bool LIFT, class T, int N>
__device__ inline void add_points(const Frustum<T>& frustum, int begin, int end, int warp,
                                  int warps, const WarpLanes& at, accumulator<T> (&sum)[N]) {
  for (int first = begin + warp * WARP; first < end; first += warps * WARP) {
    const int count = min(WARP, end - first);
    int row = 0;
    accumulator<T> weight = 0;
    if (at.thread < count) {
      const int point = __ldg(frustum.order + first + at.thread);
      const int plane = frustum.depths * frustum.area;
      row = LIFT ? point / plane * frustum.area + point % frustum.area : point;
      if (LIFT) weight = __ldg(frustum.depth + point);
    }
    for (int next = 0; next < count; next += BEV_ROWS * at.slices) {
      Pack<T, N> rows[BEV_ROWS];
      accumulator<T> weights[BEV_ROWS];
#pragma unroll
      for (int u = 0; u < BEV_ROWS; ++u) {
        const int from = next + u * at.slices + at.slice;
        const int64_t source = __shfl_sync(ALL_LANES, row, from % WARP);
        weights[u] = LIFT ? __shfl_sync(ALL_LANES, weight, from % WARP) : accumulator<T>(1);
        if (!at.active || from >= count) weights[u] = 0;
        if (weights[u] != 0) rows[u] = load<N>(frustum.feats, source * frustum.vectors + at.vector);
      }
#pragma unroll
      for (int u = 0; u < BEV_ROWS; ++u) {
        if (weights[u] == 0) continue;
#pragma unroll
        for (int n = 0; n < N; ++n) sum[n] += weights[u] * widen(rows[u].at[n]);
      }
    }
  }
}

// Adds what the slices hold to the first one's.
template <class A, int N>
__device__ inline void add_slices(const WarpLanes& at, A (&sum)[N]) {
  A own[N];
#pragma unroll
  for (int n = 0; n < N; ++n) own[n] = sum[n];
  for (int slice = 1; slice < at.slices; ++slice)
#pragma unroll
    for (int n = 0; n < N; ++n)
      sum[n] += __shfl_sync(ALL_LANES, own[n], (at.thread + slice * at.lanes) % WARP);
}

template <class T, int N>
__device__ inline void write_row(T* to, int64_t vector, const accumulator<T> (&sum)[N]) {
  Pack<T, N> row;
#pragma unroll
  for (int n = 0; n < N; ++n) row.at[n] = narrow<T>(sum[n]);
  store(to, vector, row);
}

// out[cell] = sum over the points of the cell of feats, or of depth * context. The cells of a block
// are far apart, for the long ones, around the cameras, are neighbours. Shared memory:
// BEV_WARPS * WARP * N sums.
template <class T, int N, bool LIFT>
__global__ void __launch_bounds__(BEV_WARPS* WARP, BEV_BLOCKS)
    bev_pool(const T* __restrict__ feats, const accumulator<T>* __restrict__ depth,
             const int* __restrict__ order, const int* __restrict__ interval_ptr,
             T* __restrict__ out, int64_t num_cells, int64_t vectors, int64_t lanes, int64_t depths,
             int64_t area) {
  using A = accumulator<T>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  A* const partial = reinterpret_cast<A*>(shared_memory);
  const Frustum<T> frustum{
      feats, depth, order, vectors, static_cast<int>(depths), static_cast<int>(area)};
  const WarpLanes at(lanes, blockIdx.y * lanes, vectors);
  const int warp = static_cast<int>(threadIdx.x) / WARP;

  const int64_t own = blockIdx.x + static_cast<int64_t>(warp) * gridDim.x;
  bool is_long = false;
  if (own < num_cells) {
    const int begin = interval_ptr[own], end = interval_ptr[own + 1];
    is_long = end - begin > BEV_LONG;
    if (!is_long) {
      A sum[N] = {};
      add_points<LIFT>(frustum, begin, end, 0, 1, at, sum);
      add_slices(at, sum);
      if (at.owns()) write_row(out, own * vectors + at.vector, sum);
    }
  }
  if (!__syncthreads_or(is_long)) return;

  for (int k = 0; k < BEV_WARPS; ++k) {
    const int64_t cell = blockIdx.x + static_cast<int64_t>(k) * gridDim.x;
    if (cell >= num_cells) break;
    const int begin = interval_ptr[cell], end = interval_ptr[cell + 1];
    if (end - begin <= BEV_LONG) continue;
    A sum[N] = {};
    add_points<LIFT>(frustum, begin, end, warp, BEV_WARPS, at, sum);
    add_slices(at, sum);
#pragma unroll
    for (int n = 0; n < N; ++n) partial[(n * BEV_WARPS + warp) * WARP + at.thread] = sum[n];
    __syncthreads();
    if (warp == 0 && at.owns()) {
      for (int other = 1; other < BEV_WARPS; ++other)
#pragma unroll
        for (int n = 0; n < N; ++n) sum[n] += partial[(n * BEV_WARPS + other) * WARP + at.thread];
      write_row(out, cell * vectors + at.vector, sum);
    }
    __syncthreads();
  }
}

// Adds up BEV_DOTS values over the lanes of a warp: returns the sum of dots[lane / 4].
template <class A>
__device__ inline A add_dots(int lane, A (&dots)[BEV_DOTS]) {
#pragma unroll
  for (int half = BEV_DOTS / 2, bit = WARP / 2; half > 0; half /= 2, bit /= 2)
#pragma unroll
    for (int u = 0; u < half; ++u) {
      const bool upper = lane & bit;
      const A given = upper ? dots[u] : dots[u + half];
      const A kept = upper ? dots[u + half] : dots[u];
      dots[u] = kept + __shfl_xor_sync(ALL_LANES, given, bit);
    }
  dots[0] += __shfl_xor_sync(ALL_LANES, dots[0], 2);
  return dots[0] + __shfl_xor_sync(ALL_LANES, dots[0], 1);
}

// A warp owns a pixel: it reads the gradients of the cells along the pixel's ray once, for the
// gradient of the depth of each and for that of the context.
template <class T, int N>
__global__ void __launch_bounds__(BEV_WARPS* WARP, BEV_BLOCKS)
    bev_pool_depth_grad(const T* __restrict__ grad, const accumulator<T>* __restrict__ depth,
                        const T* __restrict__ context, const int64_t* __restrict__ cells,
                        accumulator<T>* __restrict__ grad_depth, T* __restrict__ grad_context,
                        int64_t pixels, int64_t vectors, int64_t depths, int64_t area) {
  using A = accumulator<T>;
  const int64_t pixel = global_thread() / WARP;
  const int lane = static_cast<int>(threadIdx.x) % WARP;
  if (pixel >= pixels) return;
  const int64_t ray = pixel / area * depths * area + pixel % area;

  for (int64_t first = 0; first < vectors; first += WARP) {
    const int64_t vector = first + lane;
    const bool active = vector < vectors;
    A seen[N] = {}, sum[N] = {};
    if (active) {
      const Pack<T, N> row = load<N>(context, pixel * vectors + vector);
#pragma unroll
      for (int n = 0; n < N; ++n) seen[n] = widen(row.at[n]);
    }
    for (int64_t start = 0; start < depths; start += WARP) {
      const int count = static_cast<int>(min(static_cast<int64_t>(WARP), depths - start));
      const int64_t point = ray + (start + lane) * area;
      int cell = -1;
      A weight = 0, own = 0;
      if (lane < count) cell = static_cast<int>(cells[point]);
      if (cell >= 0) weight = depth[point];
      for (int next = 0; next < count; next += BEV_DOTS) {
        Pack<T, N> rows[BEV_DOTS];
        A dots[BEV_DOTS];
        bool there[BEV_DOTS];
#pragma unroll
        for (int u = 0; u < BEV_DOTS; ++u) {
          const int64_t from = __shfl_sync(ALL_LANES, cell, next + u);
          there[u] = active && from >= 0;
          if (there[u]) rows[u] = load<N>(grad, from * vectors + vector);
        }
#pragma unroll
        for (int u = 0; u < BEV_DOTS; ++u) {
          const A factor = __shfl_sync(ALL_LANES, weight, next + u);
          dots[u] = 0;
          if (!there[u]) continue;
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const A value = widen(rows[u].at[n]);
            dots[u] += seen[n] * value;
            sum[n] += factor * value;
          }
        }
        const A dot = add_dots(lane, dots);
        const A mine = __shfl_sync(ALL_LANES, dot, (lane - next) * 4 & (WARP - 1));
        if (lane >= next && lane < next + BEV_DOTS) own = mine;
      }
      if (lane < count) grad_depth[point] = first == 0 ? own : grad_depth[point] + own;
    }
    if (active) write_row(grad_context, pixel * vectors + vector, sum);
  }
}

}  // namespace pointlib
