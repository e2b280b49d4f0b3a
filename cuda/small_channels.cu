// Sparse convolution of one to five input channels, such as a network's first layer: too few to
// fill a tensor core. The weights of all taps lie in shared memory; the threads of a row go through
// its own taps, and no others.
#include "epilogue.cuh"

namespace pointlib {

// A block owns ROWS output rows, a few at a time, and COLS output channels; a thread VECTOR
// channels of a row.
template <class T, int CHANNELS, int ROWS, int COLS, int THREADS>
__global__ void __launch_bounds__(THREADS, 512 / THREADS)
    small_channels(const T* __restrict__ feats, const T* __restrict__ weight, int64_t taps,
                   int64_t mirrored, const uint32_t* __restrict__ mask,
                   const int32_t* __restrict__ row_ptr, const int32_t* __restrict__ neighbours,
                   int64_t num_rows, const accumulator<T>* __restrict__ scale,
                   const accumulator<T>* __restrict__ shift, const T* residual, int64_t slope,
                   T* out, int64_t columns, int64_t aligned) {
  using Sum = accumulator<T>;
  constexpr int VECTOR = 4, ACROSS = COLS / VECTOR;
  using Group = Vector<Sum, VECTOR>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  Sum* kernel =
      reinterpret_cast<Sum*>(shared_memory);  // (taps, CHANNELS, COLS), in the map's order
  const int64_t column_tiles = (columns + COLS - 1) / COLS, tile = blockIdx.x / column_tiles;
  const int64_t first_column = blockIdx.x % column_tiles * COLS;
  for (int item = threadIdx.x; item < taps * CHANNELS * COLS; item += THREADS) {
    const int64_t tap = item / (CHANNELS * COLS), column = first_column + item % COLS;
    const int64_t row = (mirrored ? taps - 1 - tap : tap) * CHANNELS + item / COLS % CHANNELS;
    kernel[item] = column < columns ? widen(weight[row * columns + column]) : Sum(0);
  }
  __syncthreads();

  const Epilogue<T> epilogue = {scale,   shift,   residual,
                                out,     nullptr, static_cast<Sum>(__longlong_as_double(slope)),
                                columns, true,    true};
  const int own = static_cast<int>(threadIdx.x) % ACROSS * VECTOR;
  const int64_t words = (taps + 31) / 32, end = min((tile + 1) * ROWS, num_rows);
  for (int64_t row = tile * ROWS + threadIdx.x / ACROSS; row < end; row += THREADS / ACROSS) {
    Group sum = {};
    int64_t next = mask ? row_ptr[row] : 0;
    for (int64_t word = 0; word < words; ++word) {
      for (uint32_t left = mask ? mask[row * words + word] : 1u; left; left &= left - 1) {
        const int64_t tap = word * 32 + __ffs(static_cast<int>(left)) - 1;
        const T* source = feats + (mask ? neighbours[next++] : row) * CHANNELS;
        const Sum* taken = kernel + tap * CHANNELS * COLS + own;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
          const Sum value = widen(source[c]);
          const Group factor = *reinterpret_cast<const Group*>(taken + c * COLS);
#pragma unroll
          for (int i = 0; i < VECTOR; ++i) sum.at[i] += value * factor.at[i];
        }
      }
    }
    if (aligned && first_column + own + VECTOR <= columns) {
      epilogue.template write<VECTOR>(row, first_column + own, sum);
      continue;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      if (first_column + own + i < columns) {
        epilogue.template write<1>(row, first_column + own + i, {{sum.at[i]}});
      }
    }
  }
}

}  // namespace pointlib
