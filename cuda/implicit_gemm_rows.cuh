// The rows of one tile of an implicit GEMM: which taps any of them has, and which input row feeds
// each of them.
#pragma once

#include "types.cuh"

namespace pointlib {

// Row form of a kernel map, as pointlib/ops/_cuda/row_map.py makes it.
struct RowMap {
  const uint32_t* mask;       // (rows, words); null: every row feeds itself through tap 0
  const int32_t* row_ptr;     // (rows + 1,)
  const int32_t* neighbours;  // (pairs,)
  const int32_t* order;       // (rows,), or null for 0, 1, 2 ...
  int64_t rows, words;
  int64_t first_tap, end_tap;  // the taps that this launch sums

  // Bits of the taps of this launch in a word of the mask.
  __device__ __forceinline__ uint32_t range(int64_t word) const {
    const int64_t from = first_tap - word * 32, to = end_tap - word * 32;
    const uint32_t above = from <= 0 ? ~0u : from >= 32 ? 0u : ~0u << from;
    const uint32_t below = to >= 32 ? ~0u : to <= 0 ? 0u : ~(~0u << to);
    return above & below;
  }
};

// In shared memory. Taps are taken a word of the mask, a window, at a time.
template <int ROWS, int THREADS>
struct TileRows {
  static_assert(ROWS % WARP == 0 && THREADS % ROWS == 0, "a warp looks after 32 rows of one tap");
  static constexpr int WARPS = ROWS / WARP;
  static constexpr int BATCH = 8;  // index reads in flight

  int32_t row[ROWS];            // output rows, -1 past the last one
  int32_t source[32][ROWS];     // input row of the window's n-th tap, -1 where there is none
  uint32_t present[32][WARPS];  // the rows that have the window's n-th tap, 32 a word
  uint32_t taps;                // of the window that any row has

  // Thread t looks after row t % ROWS; the threads of one row share its taps.
  __device__ __forceinline__ static int own() { return static_cast<int>(threadIdx.x) % ROWS; }

  // Name the tile's rows and return this thread's, or -1.
  __device__ __forceinline__ int32_t look_up(const RowMap& map, int64_t tile) {
    const int64_t position = tile * ROWS + own();
    int32_t mine = -1;
    if (position < map.rows) {
      mine = map.order ? map.order[position] : static_cast<int32_t>(position);
    }
    if (threadIdx.x < ROWS) row[own()] = mine;
    if (threadIdx.x == 0) taps = 0;
    __syncthreads();
    return mine;
  }

  // Fill the window and return its taps. `start`: where this thread's neighbours of the window
  // begin; moves on.
  __device__ __forceinline__ uint32_t open(const RowMap& map, int64_t word, int32_t mine,
                                           int32_t& start) {
    uint32_t all = 0;
    if (mine >= 0) all = map.mask ? map.mask[mine * map.words + word] : 1u;
    const uint32_t wanted = all & map.range(word);
    uint32_t any = wanted;
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
      any |= __shfl_xor_sync(ALL_LANES, any, apart);
    }
    if (threadIdx.x % WARP == 0 && any) atomicOr(&taps, any);
    __syncthreads();
    const uint32_t window = taps;
    uint32_t left = window;
    for (int rank = 0; left; rank += BATCH) fill(map, mine, start, all, wanted, rank, left);
    start += __popc(all);
    __syncthreads();
    return window;
  }

  // Before the next window is opened, once every thread has done with this one.
  __device__ __forceinline__ void close() {
    if (threadIdx.x == 0) taps = 0;
    __syncthreads();
  }

 private:
  // The next BATCH taps of `left`: their reads first, so that they are under way together.
  __device__ __forceinline__ void fill(const RowMap& map, int32_t mine, int32_t start, uint32_t all,
                                       uint32_t wanted, int rank, uint32_t& left) {
    int32_t found[BATCH];
    uint32_t rows[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const uint32_t bit = left & (~left + 1);  // the lowest; 0 when none is left
      left ^= bit;
      const bool has = (wanted & bit) != 0;
      rows[i] = __ballot_sync(ALL_LANES, has);
      found[i] = -1;
      if (has && static_cast<int>(threadIdx.x) / ROWS == i % (THREADS / ROWS)) {
        found[i] = map.mask ? map.neighbours[start + __popc(all & (bit - 1))] : mine;
      }
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      if (rank + i < 32 && static_cast<int>(threadIdx.x) / ROWS == i % (THREADS / ROWS)) {
        source[rank + i][own()] = found[i];
        if (threadIdx.x % WARP == 0) present[rank + i][own() / WARP] = rows[i];
      }
    }
  }
};

}  // namespace pointlib
