// Weight gradient: grad_weight[k] = sum of feats[i]^T grad[o] over the pairs (i, o) of tap k. Every
// block adds up one chunk of a tap's pairs; then the chunks of a tap are added in their order, so
// the same bits come out every time.
#include "gathered_rows.cuh"
#include "product_tile.cuh"
#include "types.cuh"

namespace pointlib {

// partial (chunks, c_in, c_out): products of the pairs bounds[chunk] .. bounds[chunk + 1] - 1. One
// block a chunk and a tile of channels, tiles first, so that blocks which read the same rows run
// together.
template <class Tile, class T, int TILE_M, int TILE_N, int DEPTH>
__device__ __forceinline__ void add_chunk(const T* feats, const T* grad, const int* in_index,
                                          const int* out_index, const int64_t* bounds,
                                          accumulator<T>* partial, int64_t c_in, int64_t c_out,
                                          bool feats_vectors, bool grad_vectors) {
  using Left = GatheredRows<T, DEPTH, TILE_M, Tile::STRIDE_A, Tile::THREADS>;
  using Right = GatheredRows<T, DEPTH, TILE_N, Tile::STRIDE_B, Tile::THREADS>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  T* panels = reinterpret_cast<T*>(shared_memory);
  constexpr int STAGE = Left::ELEMENTS + Right::ELEMENTS;

  const int64_t tiles_m = (c_in + TILE_M - 1) / TILE_M, tiles_n = (c_out + TILE_N - 1) / TILE_N;
  const int64_t chunk = blockIdx.x / (tiles_m * tiles_n), tile = blockIdx.x % (tiles_m * tiles_n);
  const int64_t first_m = tile / tiles_n * TILE_M, first_n = tile % tiles_n * TILE_N;
  const int64_t begin = bounds[chunk], end = bounds[chunk + 1];
  const int steps = static_cast<int>((end - begin + DEPTH - 1) / DEPTH);

  Left left;
  Right right;
  const auto look_up = [&](int step) {  // a step ahead of copy, for an address waits on it
    left.look_up(in_index, begin + step * DEPTH, end);
    right.look_up(out_index, begin + step * DEPTH, end);
  };
  const auto copy = [&](int step) {
    if (step < steps) {
      T* stage = panels + step % STAGES * STAGE;
      left.copy(stage, feats, c_in, first_m, feats_vectors);
      right.copy(stage + Left::ELEMENTS, grad, c_out, first_n, grad_vectors);
      look_up(step + 1);
    }
    close_stage();
  };

  Tile product;
  look_up(0);
  for (int step = 0; step < STAGES - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_stage();
    __syncthreads();
    copy(step + STAGES - 1);
    const T* stage = panels + step % STAGES * STAGE;
    product.add(stage, stage + Left::ELEMENTS);
  }
  partial += chunk * c_in * c_out;
  product.visit([&](int m, int n, accumulator<T> sum, accumulator<T> next) {
    const int64_t row = first_m + m;
    if (row < c_in) store_two(partial + row * c_out, first_n + n, c_out, sum, next);
  });
}

template <class T, int TILE_M, int TILE_N, int DEPTH>
__global__ void __launch_bounds__(TensorCoreTile<T, TILE_M, TILE_N, DEPTH, true>::THREADS)
    weight_grad_tensor(const T* feats, const T* grad, const int* in_index, const int* out_index,
                       const int64_t* bounds, float* partial, int64_t c_in, int64_t c_out,
                       int64_t feats_vectors, int64_t grad_vectors) {
  using Tile = TensorCoreTile<T, TILE_M, TILE_N, DEPTH, true>;
  add_chunk<Tile, T, TILE_M, TILE_N, DEPTH>(feats, grad, in_index, out_index, bounds, partial, c_in,
                                            c_out, feats_vectors != 0, grad_vectors != 0);
}

template <class T, int TILE_M, int TILE_N, int DEPTH>
__global__ void __launch_bounds__(ExactTile<T, TILE_M, TILE_N, DEPTH, true>::THREADS)
    weight_grad_exact(const T* feats, const T* grad, const int* in_index, const int* out_index,
                      const int64_t* bounds, accumulator<T>* partial, int64_t c_in, int64_t c_out,
                      int64_t feats_vectors, int64_t grad_vectors) {
  using Tile = ExactTile<T, TILE_M, TILE_N, DEPTH, true>;
  add_chunk<Tile, T, TILE_M, TILE_N, DEPTH>(feats, grad, in_index, out_index, bounds, partial, c_in,
                                            c_out, feats_vectors != 0, grad_vectors != 0);
}

// As above where channels are in groups: partial (chunks, group_in, c_out), and output channel c
// reads the group_in inputs of its group. A warp has 32 elements of the result and every eighth
// pair; the warps' sums are added in order.
template <class T>
__global__ void __launch_bounds__(256, 1)
    weight_grad_grouped(const T* __restrict__ feats, const T* __restrict__ grad,
                        const int* __restrict__ in_index, const int* __restrict__ out_index,
                        const int64_t* __restrict__ bounds, accumulator<T>* __restrict__ partial,
                        int64_t c_in, int64_t c_out, int64_t groups) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  auto* sums = reinterpret_cast<accumulator<T>*>(shared_memory);  // (warps, 32)
  const int lane = static_cast<int>(threadIdx.x) % WARP;
  const int warp = static_cast<int>(threadIdx.x) / WARP,
            warps = static_cast<int>(blockDim.x) / WARP;
  const int64_t group_in = c_in / groups, group_out = c_out / groups, size = group_in * c_out;
  const int64_t blocks = (size + WARP - 1) / WARP;
  const int64_t chunk = blockIdx.x / blocks, element = blockIdx.x % blocks * WARP + lane;
  const int64_t column = element % c_out, source = column / group_out * group_in + element / c_out;

  accumulator<T> sum = 0;
  if (element < size) {
    const int64_t end = bounds[chunk + 1];
#pragma unroll 4
    for (int64_t pair = bounds[chunk] + warp; pair < end; pair += warps) {
      const int64_t input = in_index ? in_index[pair] : pair;
      const int64_t output = out_index ? out_index[pair] : pair;
      sum += widen(feats[input * c_in + source]) * widen(grad[output * c_out + column]);
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || element >= size) return;
  for (int other = 1; other < warps; ++other) sum += sums[other * WARP + lane];
  partial[chunk * size + element] = sum;
}

// out (taps, size): sums of partial (chunks, size) over the chunks first_chunk[tap] ..
// first_chunk[tap + 1] - 1.
template <class T>
__global__ void add_chunks(const accumulator<T>* __restrict__ partial,
                           const int64_t* __restrict__ first_chunk, T* __restrict__ out,
                           int64_t taps, int64_t size) {
  const int64_t at = global_thread();
  if (at >= taps * size) return;
  const int64_t tap = at / size, element = at % size, end = first_chunk[tap + 1];
  accumulator<T> sum = 0;
#pragma unroll 4
  for (int64_t chunk = first_chunk[tap]; chunk < end; ++chunk)
    sum += partial[chunk * size + element];
  out[at] = narrow<T>(sum);
}

}  // namespace pointlib
