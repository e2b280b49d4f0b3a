// Convolution tap by tap: the pairs of a tap times its weight, and then the sum of every output
// row's products. A product goes to its own place, ordered by output row and tap, so the sums need
// no atomics and come out the same every time. For taps with few pairs, which would leave most rows
// of an output-stationary tile empty.
#include "gathered_rows.cuh"
#include "product_tile.cuh"
#include "types.cuh"

namespace pointlib {

// The place of a pair among the pairs ordered by output row and tap.
__device__ __forceinline__ int64_t slot_of(const uint32_t* mask, const int32_t* row_ptr,
                                           int64_t words, int64_t row, int64_t tap) {
  const uint32_t* own = mask + row * words;
  int32_t slot = row_ptr[row];
  for (int64_t word = 0; word < tap / 32; ++word) slot += __popc(own[word]);
  return slot + __popc(own[tap / 32] & ((1u << (tap % 32)) - 1));
}

// products (pairs, c_out): feats[i] @ weight[k] of every pair at its slot. One block a chunk of at
// most TILE_M pairs of a tap and TILE_N output channels, channels first, so that blocks which
// gather the same rows run together.
template <class Tile, class T, int TILE_M, int TILE_N, int DEPTH>
__device__ __forceinline__ void multiply_chunk(const T* feats, const T* weight, const int* in_index,
                                               const int* out_index, const int64_t* bounds,
                                               const int64_t* taps, const uint32_t* mask,
                                               const int32_t* row_ptr, accumulator<T>* products,
                                               int64_t words, int64_t c_in, int64_t c_out,
                                               bool feats_vectors, bool weight_vectors) {
  using Left = GatheredRows<T, TILE_M, DEPTH, Tile::STRIDE_A, Tile::THREADS>;
  using Right = GatheredRows<T, DEPTH, TILE_N, Tile::STRIDE_B, Tile::THREADS>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  T* panels = reinterpret_cast<T*>(shared_memory);
  constexpr int STAGE = Left::ELEMENTS + Right::ELEMENTS;
  auto* slots = reinterpret_cast<int32_t*>(panels + STAGES * STAGE);  // (TILE_M,)

  const int64_t tiles = (c_out + TILE_N - 1) / TILE_N;
  const int64_t chunk = blockIdx.x / tiles, first_n = blockIdx.x % tiles * TILE_N;
  const int64_t begin = bounds[chunk], end = bounds[chunk + 1], tap = taps[chunk];
  const int steps = static_cast<int>((c_in + DEPTH - 1) / DEPTH);
  weight += tap * c_in * c_out;
  for (int i = threadIdx.x; i < end - begin; i += Tile::THREADS) {
    const int64_t pair = begin + i;
    slots[i] = mask ? slot_of(mask, row_ptr, words, out_index[pair], tap) : pair;
  }
  __syncthreads();

  Left left;
  Right right;
  left.look_up(in_index, begin, end);
  const auto copy = [&](int step) {
    if (step < steps) {
      T* stage = panels + step % STAGES * STAGE;
      left.copy(stage, feats, c_in, step * DEPTH, feats_vectors);
      right.look_up(nullptr, step * DEPTH, c_in);
      right.copy(stage + Left::ELEMENTS, weight, c_out, first_n, weight_vectors);
    }
    close_stage();
  };

  Tile product;
  for (int step = 0; step < STAGES - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_stage();
    __syncthreads();
    copy(step + STAGES - 1);
    const T* stage = panels + step % STAGES * STAGE;
    product.add(stage, stage + Left::ELEMENTS);
  }
  product.visit([&](int m, int n, accumulator<T> sum, accumulator<T> next) {
    if (m >= end - begin) return;
    store_two(products + slots[m] * c_out, first_n + n, c_out, sum, next);
  });
}

template <class T, int TILE_M, int TILE_N, int DEPTH>
__global__ void __launch_bounds__(TensorCoreTile<T, TILE_M, TILE_N, DEPTH, false>::THREADS, 1)
    multiply_tensor(const T* feats, const T* weight, const int* in_index, const int* out_index,
                    const int64_t* bounds, const int64_t* taps, const uint32_t* mask,
                    const int32_t* row_ptr, float* products, int64_t words, int64_t c_in,
                    int64_t c_out, int64_t feats_vectors, int64_t weight_vectors) {
  using Tile = TensorCoreTile<T, TILE_M, TILE_N, DEPTH, false>;
  multiply_chunk<Tile, T, TILE_M, TILE_N, DEPTH>(feats, weight, in_index, out_index, bounds, taps,
                                                 mask, row_ptr, products, words, c_in, c_out,
                                                 feats_vectors != 0, weight_vectors != 0);
}

template <class T, int TILE_M, int TILE_N, int DEPTH>
__global__ void __launch_bounds__(ExactTile<T, TILE_M, TILE_N, DEPTH, false>::THREADS)
    multiply_exact(const T* feats, const T* weight, const int* in_index, const int* out_index,
                   const int64_t* bounds, const int64_t* taps, const uint32_t* mask,
                   const int32_t* row_ptr, accumulator<T>* products, int64_t words, int64_t c_in,
                   int64_t c_out, int64_t feats_vectors, int64_t weight_vectors) {
  using Tile = ExactTile<T, TILE_M, TILE_N, DEPTH, false>;
  multiply_chunk<Tile, T, TILE_M, TILE_N, DEPTH>(feats, weight, in_index, out_index, bounds, taps,
                                                 mask, row_ptr, products, words, c_in, c_out,
                                                 feats_vectors != 0, weight_vectors != 0);
}

// out[row] = bias + sum of the row's products, in tap order; COLUMNS channels a thread. `places`
// says in which row of products a slot's product is; null where it is the slot's. Without row_ptr a
// row has the one product of its number.
template <class T, class Product, int COLUMNS>
__global__ void __launch_bounds__(256)
    add_products(const Product* __restrict__ products, const int32_t* __restrict__ places,
                 const int32_t* __restrict__ row_ptr, const T* __restrict__ bias,
                 T* __restrict__ out, int64_t rows, int64_t c_out) {
  const int64_t pieces = c_out / COLUMNS, at = global_thread();
  if (at >= rows * pieces) return;
  const int64_t row = at / pieces, column = at % pieces * COLUMNS;
  const int64_t begin = row_ptr ? row_ptr[row] : row, end = row_ptr ? row_ptr[row + 1] : row + 1;
  accumulator<T> sums[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) sums[i] = 0;
#pragma unroll 4
  for (int64_t slot = begin; slot < end; ++slot) {
    const int64_t place = places ? places[slot] : slot;
    const auto piece =
        *reinterpret_cast<const Vector<Product, COLUMNS>*>(products + place * c_out + column);
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) sums[i] += widen(piece.at[i]);
  }
  Vector<T, COLUMNS> result;
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    if (bias) sums[i] += widen(bias[column + i]);
    result.at[i] = narrow<T>(sums[i]);
  }
  *reinterpret_cast<Vector<T, COLUMNS>*>(out + row * c_out + column) = result;
}

// The last j with starts[j] <= value, of `count` ascending starts.
__device__ __forceinline__ int64_t segment_of(const int64_t* __restrict__ starts, int64_t count,
                                              int64_t value) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (__ldg(starts + middle) <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// buffer (rows, columns of Piece): the input rows of the pairs, tap taps[j] from row starts[j] on;
// zeros fill up.
template <class Piece>
__global__ void gather_rows(const Piece* __restrict__ feats, const int* __restrict__ in_index,
                            const int64_t* __restrict__ offsets, const int64_t* __restrict__ taps,
                            const int64_t* __restrict__ starts, Piece* __restrict__ buffer,
                            int64_t segments, int64_t rows, int64_t columns) {
  const int64_t at = global_thread();
  if (at >= rows * columns) return;
  const int64_t row = at / columns, segment = segment_of(starts, segments, row);
  const int64_t tap = taps[segment], pair = offsets[tap] + row - starts[segment];
  Piece piece = {};
  if (pair < offsets[tap + 1]) piece = feats[in_index[pair] * columns + at % columns];
  buffer[at] = piece;
}

// places (pairs,): for each slot, the row of the buffer that its pair was gathered to; tap k begins
// at firsts[k].
__global__ void place_products(const int* __restrict__ out_index,
                               const int64_t* __restrict__ offsets,
                               const int64_t* __restrict__ firsts,
                               const uint32_t* __restrict__ mask,
                               const int32_t* __restrict__ row_ptr, int32_t* __restrict__ places,
                               int64_t pairs, int64_t volume, int64_t words) {
  const int64_t pair = global_thread();
  if (pair >= pairs) return;
  const int64_t tap = segment_of(offsets, volume, pair);
  const int64_t slot = slot_of(mask, row_ptr, words, out_index[pair], tap);
  places[slot] = static_cast<int32_t>(firsts[tap] + pair - offsets[tap]);
}

}  // namespace pointlib
