// Output-stationary sparse convolution. A block owns ROWS output rows and COLS output channels. It
// visits the taps that any of its rows has; for each tap and each slice of input channels it
// gathers the input rows that feed its own into shared memory, zeros where there is none,
// multiplies them by the tap's weights, and keeps the sums in registers. Nothing is written before
// the row is finished, so the result is the same whatever the order of the blocks.
#include "implicit_gemm_copy.cuh"

namespace pointlib {

// Sum the products of one window, (rows of a tap) x (weights of the tap), slice by slice.
template <int STAGES, class Feeder, class Rows, class Sums>
__device__ __forceinline__ void sum_window(Feeder& feeder, const Rows& rows, Sums& sums,
                                           uint4* stages, int64_t window, uint32_t taps) {
  constexpr int STAGE = Feeder::LEFT + Feeder::RIGHT;
  const int steps = __popc(taps) * feeder.slices;
  feeder.start(window, taps);
  int rank = 0, slice = 0;  // of the step that is multiplied
#if __CUDA_ARCH__ >= 800
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage < steps) feeder.copy(stages + stage * STAGE);
    ptx::cp_async_commit();
  }
  int read = 0, write = STAGES - 1;
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<STAGES - 2>();
    __syncthreads();  // this step's slices are there, and the previous one's have been read
    if (step + STAGES - 1 < steps) feeder.copy(stages + write * STAGE);
    ptx::cp_async_commit();
    const uint4* stage = stages + read * STAGE;
    sums.add(stage, stage + Feeder::LEFT, rows.present[rank]);
    read = read + 1 == STAGES ? 0 : read + 1;
    write = write + 1 == STAGES ? 0 : write + 1;
    if (++slice == feeder.slices) slice = 0, ++rank;
  }
  ptx::cp_async_wait<0>();
#else
  static_assert(STAGES == 2, "registers hold one slice ahead");
  if (steps == 0) return;
  feeder.read();
  feeder.write(stages);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const bool more = step + 1 < steps;
    if (more) feeder.read();
    const uint4* stage = stages + step % 2 * STAGE;
    sums.add(stage, stage + Feeder::LEFT, rows.present[rank]);
    if (more) feeder.write(stages + (step + 1) % 2 * STAGE);
    __syncthreads();
    if (++slice == feeder.slices) slice = 0, ++rank;
  }
#endif
}

// Finish the sums of a tile, VECTOR channels of a row at a time.
template <class T, int VECTOR, int ROWS, int COLS, int STRIDE, int THREADS>
__device__ __forceinline__ void write_tile(const Epilogue<T>& epilogue, const accumulator<T>* tile,
                                           const int32_t* rows, int64_t first_column) {
  constexpr int VECTORS = COLS / VECTOR;
  for (int item = threadIdx.x; item < ROWS * VECTORS; item += THREADS) {
    const int row = item / VECTORS, column = item % VECTORS * VECTOR;
    if (rows[row] < 0 || first_column + column >= epilogue.channels) continue;
    using Group = Vector<accumulator<T>, VECTOR>;
    epilogue.template write<VECTOR>(rows[row], first_column + column,
                                    *reinterpret_cast<const Group*>(tile + row * STRIDE + column));
  }
}

// Blocks that the registers of a multiprocessor shall hold, by the sums that a thread keeps: while
// some wait, others multiply.
template <int THREADS, int SUMS>
constexpr int RESIDENT =
    65536 / THREADS / (SUMS <= 16 ? 96 : (SUMS <= (__CUDA_ARCH__ >= 800 ? 48 : 32) ? 128 : 168));

// One launch sums taps first_tap .. end_tap - 1 of every row; `first` and `last` say which of those
// that share a sum it is. `aligned`: every row of the output, and all that is read with it, begins
// at 16 bytes. `slope`: bits of a double.
template <class Math, int ROWS, int COLS, int SLICE, int WARP_ROWS, int WARP_COLS, int STAGES,
          int WIDTH>
__global__ void __launch_bounds__(
    WARP_ROWS * WARP_COLS * WARP,
    RESIDENT<WARP_ROWS * WARP_COLS * WARP,
             Sums<Math, ROWS, COLS, SLICE, WARP_ROWS, WARP_COLS>::REGISTERS>)
    implicit_gemm(const typename Math::Element* __restrict__ feats,
                  const typename Math::Element* __restrict__ more_feats, int64_t channels,
                  int64_t more_channels, int64_t stride, int64_t more_stride,
                  const typename Math::Element* __restrict__ weight, int64_t weight_columns,
                  int64_t taps, int64_t mirrored, const uint32_t* __restrict__ mask,
                  const int32_t* __restrict__ row_ptr, const int32_t* __restrict__ neighbours,
                  const int32_t* __restrict__ order, int64_t num_rows, int64_t first_tap,
                  int64_t end_tap, const accumulator<typename Math::Element>* __restrict__ scale,
                  const accumulator<typename Math::Element>* __restrict__ shift,
                  const typename Math::Element* residual, int64_t slope,
                  typename Math::Element* out, accumulator<typename Math::Element>* partial,
                  int64_t columns, int64_t first, int64_t last, int64_t aligned) {
  using T = typename Math::Element;
  constexpr int THREADS = WARP_ROWS * WARP_COLS * WARP;
  using Feed = Feeder<Math, ROWS, COLS, SLICE, THREADS, WIDTH>;
  using Tile = Sums<Math, ROWS, COLS, SLICE, WARP_ROWS, WARP_COLS>;
  using Rows = TileRows<ROWS, THREADS>;
  constexpr int STAGED = STAGES * (Feed::LEFT + Feed::RIGHT) * 16;
  constexpr int SUMS = ROWS * Tile::STRIDE * static_cast<int>(sizeof(accumulator<T>));
  extern __shared__ __align__(16) unsigned char shared_memory[];  // stages, and then the sums; rows
  uint4* stages = reinterpret_cast<uint4*>(shared_memory);
  Rows& rows = *reinterpret_cast<Rows*>(shared_memory + (STAGED > SUMS ? STAGED : SUMS));

  const int64_t column_tiles = (columns + COLS - 1) / COLS;
  const int64_t first_column = blockIdx.x % column_tiles * COLS;
  const RowMap map = {mask,     row_ptr,          neighbours, order,
                      num_rows, (taps + 31) / 32, first_tap,  end_tap};
  const Operands<T> operands = {
      {feats, more_feats},   {static_cast<int>(channels), static_cast<int>(more_channels)},
      {stride, more_stride}, weight,
      weight_columns,        taps,
      mirrored != 0};
  const Epilogue<T> epilogue = {
      scale,   shift,      residual,
      out,     partial,    static_cast<accumulator<T>>(__longlong_as_double(slope)),
      columns, first != 0, last != 0};

  const int32_t mine = rows.look_up(map, blockIdx.x / column_tiles);
  int32_t start = 0;
  if (mine >= 0 && map.mask) {
    start = map.row_ptr[mine];
    for (int64_t word = 0; word < first_tap / 32; ++word) {
      start += __popc(map.mask[mine * map.words + word]);
    }
  }
  Tile sums;
  Feed feeder(operands, rows, first_column);
  for (int64_t window = first_tap / 32; window * 32 < end_tap; ++window) {
    const uint32_t found = rows.open(map, window, mine, start);
    sum_window<STAGES>(feeder, rows, sums, stages, window, found);
    __syncthreads();
    rows.close();
  }

  auto* tile = reinterpret_cast<accumulator<T>*>(shared_memory);
  sums.store(tile);
  __syncthreads();
  if (aligned) {
    write_tile<T, Tile::VECTOR, ROWS, COLS, Tile::STRIDE, THREADS>(epilogue, tile, rows.row,
                                                                   first_column);
  } else {
    write_tile<T, 1, ROWS, COLS, Tile::STRIDE, THREADS>(epilogue, tile, rows.row, first_column);
  }
}

}  // namespace pointlib
