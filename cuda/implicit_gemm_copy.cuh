// Feeds an implicit GEMM: copies gathered rows of features, and the weights they meet, to shared
// memory.
#pragma once

#include "implicit_gemm_math.cuh"
#include "implicit_gemm_rows.cuh"

namespace pointlib {

// What is multiplied: the channels of one or two feature matrices side by side, and (taps,
// channels, columns) weights.
template <class T>
struct Operands {
  const T* feats[2];
  int channels[2];    // 0 for a second matrix that is not there
  int64_t stride[2];  // elements from row to row
  const T* weight;
  int64_t columns;  // of the weight, a multiple of 16 bytes
  int64_t taps;
  bool mirrored;  // tap k of the map meets weight taps - 1 - k
};

// Copy 16 bytes in pieces of WIDTH, those that begin within `valid` elements; zeros in place of the
// others.
#if __CUDA_ARCH__ >= 800
template <int WIDTH, class T>
__device__ __forceinline__ void copy_chunk(uint4* target, const T* source, int valid) {
#pragma unroll
  for (int byte = 0; byte < 16; byte += WIDTH) {
    const int element = byte / static_cast<int>(sizeof(T));
    const bool there = element < valid;
    ptx::cp_async<WIDTH>(reinterpret_cast<unsigned char*>(target) + byte,
                         source + (there ? element : 0), there);
  }
}
#else
template <int WIDTH, class T>
__device__ __forceinline__ uint4 read_chunk(const T* source, int valid) {
  struct alignas(16) Pieces {
    Vector<unsigned, WIDTH / 4> at[16 / WIDTH];
  };
  uint4 chunk = make_uint4(0, 0, 0, 0);
  Pieces& pieces = reinterpret_cast<Pieces&>(chunk);
#pragma unroll
  for (int byte = 0; byte < 16; byte += WIDTH) {
    const int element = byte / static_cast<int>(sizeof(T));
    if (element < valid) {
      pieces.at[byte / WIDTH] =
          *reinterpret_cast<const Vector<unsigned, WIDTH / 4>*>(source + element);
    }
  }
  return chunk;
}
#endif

// Walks over the slices of one window's taps, and copies a slice of rows and of weights at each
// step. It keeps where the next slice begins, for a step has few instructions to spare.
template <class Math, int ROWS, int COLS, int SLICE, int THREADS, int WIDTH>
struct Feeder {
  using T = typename Math::Element;
  static constexpr int VECTOR = 16 / sizeof(T);
  static constexpr int LEFT_CHUNKS = SLICE / VECTOR, RIGHT_CHUNKS = COLS / VECTOR;
  static constexpr int LEFT = ROWS * LEFT_CHUNKS, RIGHT = SLICE * RIGHT_CHUNKS;
  static constexpr int LEFT_TURNS = (LEFT + THREADS - 1) / THREADS;
  static constexpr int RIGHT_TURNS = (RIGHT + THREADS - 1) / THREADS;
  static_assert(THREADS % (8 * LEFT_CHUNKS) == 0, "a thread's chunks have one place in their rows");
  using Rows = TileRows<ROWS, THREADS>;

  const Operands<T>& operands;
  const Rows& rows;
  const int64_t first_column;
  const int columns;                  // of the weight
  const int slices_of_first, slices;  // of a tap: those of the first matrix, and of both
  const int own;                      // this thread's first element in a slice of features
  const T* tap_0;                     // weights of the map's tap 0 for the tile's columns
  int64_t tap_step;                   // from tap to tap
  int64_t word = 0;
  uint32_t left = 0;  // taps that are still to come, this one included
  int rank = 0, slice = 0;
  const T* feats = nullptr;   // this thread's elements of this slice in row 0
  int row_bytes = 0;          // from row to row
  int channels = 0;           // from the slice's first one to the last of its matrix
  const T* weight = nullptr;  // of the slice's first channel and the tile's first column

  __device__ __forceinline__ Feeder(const Operands<T>& operands, const Rows& rows,
                                    int64_t first_column)
      : operands(operands),
        rows(rows),
        first_column(first_column),
        columns(static_cast<int>(operands.columns)),
        slices_of_first((operands.channels[0] + SLICE - 1) / SLICE),
        slices(slices_of_first + (operands.channels[1] + SLICE - 1) / SLICE),
        own(static_cast<int>(threadIdx.x) % LEFT_CHUNKS * VECTOR) {
    const int64_t all = operands.channels[0] + operands.channels[1];
    tap_step = all * operands.columns;
    tap_0 = operands.weight + first_column;
    if (operands.mirrored) {
      tap_0 += (operands.taps - 1) * tap_step;
      tap_step = -tap_step;
    }
  }

  __device__ __forceinline__ void start(int64_t window, uint32_t taps) {
    word = window, left = taps, rank = 0, slice = 0;
    if (left && slices) start_tap();
  }

  __device__ __forceinline__ void start_tap() {
    weight = tap_0 + (word * 32 + __ffs(static_cast<int>(left)) - 1) * tap_step;
    enter(slices_of_first == 0);
  }

  __device__ __forceinline__ void enter(bool second) {
    feats = (second ? operands.feats[1] : operands.feats[0]) + own;
    channels = second ? operands.channels[1] : operands.channels[0];
    const int64_t stride = second ? operands.stride[1] : operands.stride[0];
    row_bytes = static_cast<int>(stride) * static_cast<int>(sizeof(T));
  }

  __device__ __forceinline__ void step() {
    if (++slice == slices) {
      slice = 0, ++rank, left &= left - 1;
      if (left) start_tap();
    } else if (slice == slices_of_first) {
      weight += static_cast<int64_t>(channels) * columns;
      enter(true);
    } else {
      weight += static_cast<int64_t>(SLICE) * columns;
      feats += SLICE, channels -= SLICE;
    }
  }

  // visit(turn, place in the tile, source, elements that are there) for each chunk of rows that
  // this thread copies. Where none are, the source is no valid address.
  template <class Visit>
  __device__ __forceinline__ void visit_left(Visit&& visit) const {
    const int first = static_cast<int>(threadIdx.x) / LEFT_CHUNKS;
#pragma unroll
    for (int turn = 0; turn < LEFT_TURNS; ++turn) {
      const int row = first + turn * (THREADS / LEFT_CHUNKS);
      if (LEFT % THREADS != 0 && row >= ROWS) break;
      const int source = rows.source[rank][row];
      const char* start =
          reinterpret_cast<const char*>(feats) + static_cast<int64_t>(source) * row_bytes;
      visit(turn, left_place(turn), reinterpret_cast<const T*>(start),
            source < 0 ? 0 : channels - own);
    }
  }

  // The same for the weights.
  template <class Visit>
  __device__ __forceinline__ void visit_right(Visit&& visit) const {
    const int last = columns - static_cast<int>(first_column);  // of this tile's columns
#pragma unroll
    for (int turn = 0; turn < RIGHT_TURNS; ++turn) {
      if (RIGHT % THREADS != 0 && turn * THREADS + static_cast<int>(threadIdx.x) >= RIGHT) break;
      const int row = right_row(turn), column = right_column(turn);
      const bool there = row < channels && column < last;
      visit(turn, right_place(turn), weight + (row * columns + column), there ? VECTOR : 0);
    }
  }

  // Where chunks lie: eight rows on, or a multiple of that, they are permuted alike.
  __device__ static __forceinline__ int left_place(int turn) {
    const int item = threadIdx.x;
    return chunk_at<LEFT_CHUNKS>(item / LEFT_CHUNKS, item % LEFT_CHUNKS) + turn * THREADS;
  }

  static constexpr bool REGULAR = THREADS % (8 * RIGHT_CHUNKS) == 0;

  __device__ static __forceinline__ int right_row(int turn) {
    const int item = threadIdx.x;
    return REGULAR ? item / RIGHT_CHUNKS + turn * (THREADS / RIGHT_CHUNKS)
                   : (item + turn * THREADS) / RIGHT_CHUNKS;
  }
  __device__ static __forceinline__ int right_column(int turn) {
    const int item = threadIdx.x;
    return (REGULAR ? item : item + turn * THREADS) % RIGHT_CHUNKS * VECTOR;
  }
  __device__ static __forceinline__ int right_place(int turn) {
    const int at = REGULAR ? 0 : turn;
    const int place =
        Math::template right_at<RIGHT_CHUNKS>(right_row(at), right_column(at) / VECTOR);
    return REGULAR ? place + turn * THREADS : place;
  }

#if __CUDA_ARCH__ >= 800
  // Start to copy this step's slices to `stage`, and go to the next step.
  __device__ __forceinline__ void copy(uint4* stage) {
    visit_left([&](int, int place, const T* source, int valid) {
      copy_chunk<WIDTH>(stage + place, source, valid);
    });
    visit_right([&](int, int place, const T* source, int valid) {
      copy_chunk<16>(stage + LEFT + place, source, valid);
    });
    step();
  }
#else
  // Without cp.async the bytes pass through registers: read them, multiply what is there, then
  // write them.
  uint4 held[LEFT_TURNS + RIGHT_TURNS];

  __device__ __forceinline__ void read() {
    visit_left([&](int turn, int, const T* source, int valid) {
      held[turn] = read_chunk<WIDTH>(source, valid);
    });
    visit_right([&](int turn, int, const T* source, int valid) {
      held[LEFT_TURNS + turn] = read_chunk<16>(source, valid);
    });
    step();
  }

  __device__ __forceinline__ void write(uint4* stage) const {
    const int item = threadIdx.x;
#pragma unroll
    for (int turn = 0; turn < LEFT_TURNS; ++turn) {
      if (LEFT % THREADS != 0 && turn * THREADS + item >= LEFT) break;
      stage[left_place(turn)] = held[turn];
    }
#pragma unroll
    for (int turn = 0; turn < RIGHT_TURNS; ++turn) {
      if (RIGHT % THREADS != 0 && turn * THREADS + item >= RIGHT) break;
      stage[LEFT + right_place(turn)] = held[LEFT_TURNS + turn];
    }
  }
#endif
};

}  // namespace pointlib
