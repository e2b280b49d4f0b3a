// Products of two tiles in shared memory, summed in registers: by tensor cores, or one by one.
#pragma once

#include "epilogue.cuh"
#include "ptx.cuh"
#include "types.cuh"

namespace pointlib {

// A tile in shared memory is rows of 16-byte chunks. Where the chunk of a row lies: permuted, so
// that eight rows of one chunk, which ldmatrix reads together, are in different banks, as are eight
// chunks of one row.
template <int CHUNKS>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  constexpr int GROUP = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;
  return row * CHUNKS + (chunk ^ (row / (8 / GROUP)) % GROUP);
}

// The same for a tile that is read four bytes at a time, four rows and eight columns together.
template <int CHUNKS>
__device__ __forceinline__ int word_chunk_at(int row, int chunk) {
  static_assert(CHUNKS % 8 == 0, "the permutation stays within eight chunks");
  return row * CHUNKS + (chunk ^ 2 * (row % 4));
}

// sum (16, 8) += left (16, 16) right (16, 8), as fragments of one warp.
__device__ __forceinline__ void multiply_halves(__half, float (&sum)[4], const unsigned (&left)[4],
                                                const unsigned (&right)[2]) {
#if __CUDA_ARCH__ >= 800
  ptx::mma_f16(sum, left, right);
#else
  ptx::mma_f16_k8(sum, {left[0], left[1]}, {right[0]});
  ptx::mma_f16_k8(sum, {left[2], left[3]}, {right[1]});
#endif
}
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void multiply_halves(__nv_bfloat16, float (&sum)[4],
                                                const unsigned (&left)[4],
                                                const unsigned (&right)[2]) {
  ptx::mma_bf16(sum, left, right);
}
#endif

// float16 and bfloat16 (sm_80) on tensor cores.
template <class T>
struct TensorCores {
  using Element = T;
  static constexpr int DEPTH = 16;

  template <int CHUNKS>
  __device__ static __forceinline__ int right_at(int row, int chunk) {
    return chunk_at<CHUNKS>(row, chunk);
  }

  // Fragments of rows 16 * step .. of `tile` and columns from `chunk` on, for pairs of eight
  // columns.
  template <int CHUNKS, int N>
  __device__ static __forceinline__ void load_right(unsigned (&right)[N][2], const uint4* tile,
                                                    int step, int column) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      unsigned four[4];
      const int chunk = column / 8 + n + lane / 16;
      ptx::ldmatrix_x4_trans(four, tile + chunk_at<CHUNKS>(step * 16 + lane % 16, chunk));
      right[n][0] = four[0], right[n][1] = four[1];
      right[n + 1][0] = four[2], right[n + 1][1] = four[3];
    }
  }

  __device__ static __forceinline__ void round(unsigned (&)[4]) {}

  __device__ static __forceinline__ void multiply(float (&sum)[4], const unsigned (&left)[4],
                                                  const unsigned (&right)[2]) {
    multiply_halves(T(), sum, left, right);
  }
};

#if __CUDA_ARCH__ >= 800
// float on tensor cores, rounded to the 11 significant bits of TF32.
struct Tf32 {
  using Element = float;
  static constexpr int DEPTH = 8;

  template <int CHUNKS>
  __device__ static __forceinline__ int right_at(int row, int chunk) {
    return word_chunk_at<CHUNKS>(row, chunk);
  }

  template <int CHUNKS, int N>
  __device__ static __forceinline__ void load_right(unsigned (&right)[N][2], const uint4* tile,
                                                    int step, int column) {
    const int lane = threadIdx.x % WARP;
    const float* words = reinterpret_cast<const float*>(tile);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int at = column + n * 8 + lane / 4;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = step * 8 + i * 4 + lane % 4;
        right[n][i] = ptx::to_tf32(words[word_chunk_at<CHUNKS>(row, at / 4) * 4 + at % 4]);
      }
    }
  }

  __device__ static __forceinline__ void round(unsigned (&left)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = ptx::to_tf32(__int_as_float(static_cast<int>(left[i])));
    }
  }

  __device__ static __forceinline__ void multiply(float (&sum)[4], const unsigned (&left)[4],
                                                  const unsigned (&right)[2]) {
    ptx::mma_tf32(sum, left, right);
  }
};
#endif

// float and double by fused multiply-add.
template <class T>
struct Exact {
  using Element = T;

  template <int CHUNKS>
  __device__ static __forceinline__ int right_at(int row, int chunk) {
    return chunk_at<CHUNKS>(row, chunk);
  }
};

// Shape of a block's work: left is (ROWS, SLICE), right (SLICE, COLS), for WARP_ROWS x WARP_COLS
// warps.
template <class Math, int ROWS, int COLS, int SLICE, int WARP_ROWS, int WARP_COLS>
struct Sums {
  using T = typename Math::Element;
  static constexpr int VECTOR = 16 / sizeof(T);
  static constexpr int LEFT_CHUNKS = SLICE / VECTOR, RIGHT_CHUNKS = COLS / VECTOR;
  static constexpr int STRIDE =
      COLS + 8;  // of the tile of sums, which keeps rows in different banks
  static constexpr int M = ROWS / WARP_ROWS / 16, N = COLS / WARP_COLS / 8;
  static constexpr int REGISTERS = sizeof(T) == 4 && M * N < 8 ? 32 : M * N * 4;
  static_assert(M > 0 && N % 2 == 0 && SLICE % Math::DEPTH == 0, "whole fragments");

  float sum[M][N][4];

  __device__ __forceinline__ Sums() {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][n][i] = 0;
      }
    }
  }

  __device__ static __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / WARP / WARP_COLS * (M * 16);
  }
  __device__ static __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x) / WARP % WARP_COLS * (N * 8);
  }

  // sum += left right. `present`: the rows of left that are not zero; sixteen that all are cost
  // nothing.
  __device__ __forceinline__ void add(const uint4* left, const uint4* right,
                                      const uint32_t* present) {
    bool active[M], any = false;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const int row = first_row() + m * 16;
      active[m] = (present[row / WARP] >> row % WARP & 0xffffu) != 0;
      any |= active[m];
    }
    if (!any) return;
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < SLICE / Math::DEPTH; ++step) {
      unsigned columns[N][2];
      Math::template load_right<RIGHT_CHUNKS>(columns, right, step, first_column());
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (!active[m]) continue;
        unsigned rows[4];
        const int row = first_row() + m * 16 + lane % 16;
        ptx::ldmatrix_x4(rows, left + chunk_at<LEFT_CHUNKS>(row, step * 2 + lane / 16));
        Math::round(rows);
#pragma unroll
        for (int n = 0; n < N; ++n) Math::multiply(sum[m][n], rows, columns[n]);
      }
    }
  }

  // Write them as rows of STRIDE.
  __device__ __forceinline__ void store(float* tile) const {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float* at = tile + (first_row() + m * 16 + lane / 4) * STRIDE + first_column() + n * 8 +
                    lane % 4 * 2;
        *reinterpret_cast<float2*>(at) = make_float2(sum[m][n][0], sum[m][n][1]);
        *reinterpret_cast<float2*>(at + 8 * STRIDE) = make_float2(sum[m][n][2], sum[m][n][3]);
      }
    }
  }
};

// The same by fused multiply-add. A thread has one chunk of columns, and every ACROSS-th row.
template <class T, int ROWS, int COLS, int SLICE, int WARP_ROWS, int WARP_COLS>
struct Sums<Exact<T>, ROWS, COLS, SLICE, WARP_ROWS, WARP_COLS> {
  static constexpr int VECTOR = 16 / sizeof(T);
  static constexpr int LEFT_CHUNKS = SLICE / VECTOR, RIGHT_CHUNKS = COLS / VECTOR;
  static constexpr int STRIDE = COLS + 8;
  static constexpr int ACROSS = WARP_ROWS * WARP_COLS * WARP / RIGHT_CHUNKS, M = ROWS / ACROSS;
  static constexpr int REGISTERS = 32;  // at most
  static_assert(M * ACROSS == ROWS && RIGHT_CHUNKS * VECTOR == COLS, "every element has a thread");

  T sum[M][VECTOR];

  __device__ __forceinline__ Sums() {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < VECTOR; ++n) sum[m][n] = 0;
    }
  }

  __device__ static __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / RIGHT_CHUNKS;
  }
  __device__ static __forceinline__ int own_chunk() {
    return static_cast<int>(threadIdx.x) % RIGHT_CHUNKS;
  }

  __device__ __forceinline__ void add(const uint4* left, const uint4* right, const uint32_t*) {
    using Chunk = Vector<T, VECTOR>;
    const Chunk* a = reinterpret_cast<const Chunk*>(left);
    const Chunk* b = reinterpret_cast<const Chunk*>(right);
#pragma unroll 2
    for (int chunk = 0; chunk < LEFT_CHUNKS; ++chunk) {
      Chunk rows[M];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        rows[m] = a[chunk_at<LEFT_CHUNKS>(first_row() + m * ACROSS, chunk)];
      }
#pragma unroll
      for (int k = 0; k < VECTOR; ++k) {
        const Chunk columns = b[chunk_at<RIGHT_CHUNKS>(chunk * VECTOR + k, own_chunk())];
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int n = 0; n < VECTOR; ++n) sum[m][n] += rows[m].at[k] * columns.at[n];
        }
      }
    }
  }

  __device__ __forceinline__ void store(T* tile) const {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      T* at = tile + (first_row() + m * ACROSS) * STRIDE + own_chunk() * VECTOR;
#pragma unroll
      for (int n = 0; n < VECTOR; ++n) at[n] = sum[m][n];
    }
  }
};

}  // namespace pointlib
