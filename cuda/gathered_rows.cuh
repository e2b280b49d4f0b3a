// Rows of a matrix, gathered by index into shared memory for tensor cores: 16 bytes at a time,
// asynchronously where the architecture can, with zeros in place of what lies outside.
#pragma once

#include "ptx.cuh"
#include "types.cuh"

namespace pointlib {

// Stages of shared memory that are filled ahead of the one in use, and that one.
#if __CUDA_ARCH__ >= 800
constexpr int STAGES = 3;
#else
constexpr int STAGES = 2;
#endif

// Start to copy 16 bytes to shared memory; zeros where `valid` is false. Before sm_80 they are
// there at once.
__device__ __forceinline__ void copy_16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  ptx::cp_async<16>(shared, global, valid);
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (valid) value = *static_cast<const uint4*>(global);
  *static_cast<uint4*>(shared) = value;
#endif
}

// Close the group of copies that were started for one stage.
__device__ __forceinline__ void close_stage() {
#if __CUDA_ARCH__ >= 800
  ptx::cp_async_commit();
#endif
}

// Wait until this thread's copies for the oldest stage are there; __syncthreads() must follow.
__device__ __forceinline__ void wait_for_stage() {
#if __CUDA_ARCH__ >= 800
  ptx::cp_async_wait<STAGES - 2>();
#endif
}

// A panel of `ROWS` rows and `COLUMNS` columns of a matrix, `STRIDE` elements from row to row in
// shared memory.
template <class T, int ROWS, int COLUMNS, int STRIDE, int THREADS>
struct GatheredRows {
  static constexpr int VECTOR = 16 / sizeof(T);
  static constexpr int VECTORS = COLUMNS / VECTOR;
  static constexpr int TURNS = (ROWS * VECTORS + THREADS - 1) / THREADS;
  static constexpr int ELEMENTS = ROWS * STRIDE;

  int source[TURNS];  // this thread's rows of the matrix; -1 where there is none

  // Look up the rows at positions first .. min(first + ROWS, end) - 1; without an index a row's
  // position is its number.
  __device__ __forceinline__ void look_up(const int* __restrict__ index, int64_t first,
                                          int64_t end) {
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      const int64_t position = first + item / VECTORS;
      source[turn] = -1;
      if (item < ROWS * VECTORS && position < end) {
        source[turn] = index ? index[position] : static_cast<int>(position);
      }
    }
  }

  // Start to copy columns first .. first + COLUMNS - 1 of those rows. `vectors`: every row begins
  // at 16 bytes.
  __device__ __forceinline__ void copy(T* panel, const T* __restrict__ matrix, int64_t columns,
                                       int64_t first, bool vectors) const {
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      if (item >= ROWS * VECTORS) break;
      const int64_t column = first + item % VECTORS * VECTOR;
      const T* row = matrix + source[turn] * columns;
      T* target = panel + item / VECTORS * STRIDE + item % VECTORS * VECTOR;
      if (vectors) {
        const bool valid = source[turn] >= 0 && column < columns;
        copy_16(target, valid ? row + column : matrix, valid);
        continue;
      }
#pragma unroll 2
      for (int i = 0; i < VECTOR; ++i) {
        const bool valid = source[turn] >= 0 && column + i < columns;
        target[i] = valid ? row[column + i] : narrow<T>(0);
      }
    }
  }
};

}  // namespace pointlib
