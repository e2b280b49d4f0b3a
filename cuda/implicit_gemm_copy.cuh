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
// step.
template <class Math, int ROWS, int COLS, int SLICE, int THREADS, int WIDTH>
struct Feeder {
  using T = typename Math::Element;
  static constexpr int VECTOR = 16 / sizeof(T);
  static constexpr int LEFT_CHUNKS = SLICE / VECTOR, RIGHT_CHUNKS = COLS / VECTOR;
  static constexpr int LEFT = ROWS * LEFT_CHUNKS, RIGHT = SLICE * RIGHT_CHUNKS;
  static constexpr int LEFT_TURNS = (LEFT + THREADS - 1) / THREADS;
  static constexpr int RIGHT_TURNS = (RIGHT + THREADS - 1) / THREADS;
  using Rows = TileRows<ROWS, THREADS>;

  const Operands<T>& operands;
  const Rows& rows;
  const int64_t first_column;
  const int slices_of_first, slices;  // of a tap: those of the first matrix, and of both
  int64_t word = 0;
  uint32_t left = 0;  // taps that are still to come, this one included
  int rank = 0, slice = 0;

  __device__ __forceinline__ Feeder(const Operands<T>& operands, const Rows& rows,
                                    int64_t first_column)
      : operands(operands),
        rows(rows),
        first_column(first_column),
        slices_of_first((operands.channels[0] + SLICE - 1) / SLICE),
        slices(slices_of_first + (operands.channels[1] + SLICE - 1) / SLICE) {}

  __device__ __forceinline__ void start(int64_t window, uint32_t taps) {
    word = window, left = taps, rank = 0, slice = 0;
  }

  __device__ __forceinline__ void step() {
    if (++slice < slices) return;
    slice = 0, ++rank, left &= left - 1;
  }

  // visit(turn, place in the tile, source, elements that are there) for each chunk of rows that
  // this thread copies.
  template <class Visit>
  __device__ __forceinline__ void visit_left(Visit&& visit) const {
    const bool second = slice >= slices_of_first;
    const T* feats = second ? operands.feats[1] : operands.feats[0];
    const int64_t stride = second ? operands.stride[1] : operands.stride[0];
    const int channels = second ? operands.channels[1] : operands.channels[0];
    const int first = (second ? slice - slices_of_first : slice) * SLICE;
#pragma unroll
    for (int turn = 0; turn < LEFT_TURNS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      if (LEFT % THREADS != 0 && item >= LEFT) break;
      const int row = item / LEFT_CHUNKS, chunk = item % LEFT_CHUNKS;
      const int source = rows.source[rank][row], channel = first + chunk * VECTOR;
      const bool there = source >= 0 && channel < channels;
      visit(turn, chunk_at<LEFT_CHUNKS>(row, chunk),
            there ? feats + source * stride + channel : feats, there ? channels - channel : 0);
    }
  }

  // The same for the weights.
  template <class Visit>
  __device__ __forceinline__ void visit_right(Visit&& visit) const {
    const bool second = slice >= slices_of_first;
    const int channels = second ? operands.channels[1] : operands.channels[0];
    const int first = (second ? slice - slices_of_first : slice) * SLICE;
    int64_t tap = word * 32 + __ffs(static_cast<int>(left)) - 1;
    if (operands.mirrored) tap = operands.taps - 1 - tap;
    const int64_t all = operands.channels[0] + operands.channels[1];
    const T* weight = operands.weight +
                      (tap * all + (second ? operands.channels[0] : 0) + first) * operands.columns +
                      first_column;
    const int columns = static_cast<int>(operands.columns);
    const int last = columns - static_cast<int>(first_column);  // of this tile's columns
#pragma unroll
    for (int turn = 0; turn < RIGHT_TURNS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      if (RIGHT % THREADS != 0 && item >= RIGHT) break;
      const int row = item / RIGHT_CHUNKS, chunk = item % RIGHT_CHUNKS;
      const bool there = first + row < channels && chunk * VECTOR < last;
      visit(turn, Math::template right_at<RIGHT_CHUNKS>(row, chunk),
            there ? weight + (row * columns + chunk * VECTOR) : operands.weight,
            there ? VECTOR : 0);
    }
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
#pragma unroll
    for (int turn = 0; turn < LEFT_TURNS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      if (item >= LEFT) break;
      stage[chunk_at<LEFT_CHUNKS>(item / LEFT_CHUNKS, item % LEFT_CHUNKS)] = held[turn];
    }
#pragma unroll
    for (int turn = 0; turn < RIGHT_TURNS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      if (item >= RIGHT) break;
      const int row = item / RIGHT_CHUNKS, chunk = item % RIGHT_CHUNKS;
      stage[LEFT + Math::template right_at<RIGHT_CHUNKS>(row, chunk)] = held[LEFT_TURNS + turn];
    }
  }
#endif
};

}  // namespace pointlib
