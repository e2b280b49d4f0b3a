// The product of two panels in shared memory, summed in the registers of a block: by tensor cores,
// or exactly.
#pragma once

#include "epilogue.cuh"
#include "ptx.cuh"
#include "types.cuh"

namespace pointlib {

template <class A, class B>
constexpr bool same_type = false;
template <class A>
constexpr bool same_type<A, A> = true;

// How the elements of the panels lie. A is [DEPTH][TILE_M] where A_TRANSPOSED, else
// [TILE_M][DEPTH]; B is [DEPTH][TILE_N]. The paddings keep the reads of a warp in different banks.
template <class T, int TILE_M, int TILE_N, int DEPTH, bool A_TRANSPOSED>
struct Panels {
  static constexpr int PADDING_A = !A_TRANSPOSED && sizeof(T) == 4 ? 4 : 8;
  static constexpr int ROWS_A = A_TRANSPOSED ? DEPTH : TILE_M;
  static constexpr int COLUMNS_A = A_TRANSPOSED ? TILE_M : DEPTH;
  static constexpr int STRIDE_A = COLUMNS_A + PADDING_A;
  static constexpr int STRIDE_B = TILE_N + 8;
};

// float16 and bfloat16 by m16n8k16 (m16n8k8 on sm_75), float by tf32 m16n8k8; sums in float32.
template <class T, int TILE_M, int TILE_N, int DEPTH, bool A_TRANSPOSED>
struct TensorCoreTile : Panels<T, TILE_M, TILE_N, DEPTH, A_TRANSPOSED> {
  using Layout = Panels<T, TILE_M, TILE_N, DEPTH, A_TRANSPOSED>;
  static constexpr int WARPS_M = TILE_M == 16 ? 1 : 2;
  static constexpr int WARPS_N = TILE_M == 16 || TILE_N == 128 ? 4 : 2;
  static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
  static constexpr int M = TILE_M / WARPS_M, N = TILE_N / WARPS_N;
  static_assert(M % 16 == 0 && N % 16 == 0, "a warp takes two fragments of B at a time");

  float sums[M / 16][N / 8][4];

  __device__ __forceinline__ TensorCoreTile() {
#pragma unroll
    for (int m = 0; m < M / 16; ++m) {
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
      }
    }
  }

  __device__ static __forceinline__ int warp_m() {
    return static_cast<int>(threadIdx.x) / WARP / WARPS_N * M;
  }
  __device__ static __forceinline__ int warp_n() {
    return static_cast<int>(threadIdx.x) / WARP % WARPS_N * N;
  }

  // sums += A B over the panels' depth.
  __device__ __forceinline__ void add(const T* a, const T* b) {
    if constexpr (sizeof(T) == 2) {
      add_half(a, b);
    } else {
      add_tf32(a, b);
    }
  }

  // Call visit(row, column, sum, next) for every sum of the tile that this thread holds and the one
  // in the next column.
  template <class Visit>
  __device__ __forceinline__ void visit(Visit&& visit) const {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
#pragma unroll
    for (int m = 0; m < M / 16; ++m) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int row = warp_m() + m * 16 + lane / 4 + i * 4;
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
          const int column = warp_n() + n * 8 + lane % 4 * 2;
          visit(row, column, sums[m][n][i], sums[m][n][i + 1]);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void add_half(const T* a, const T* b) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int eight = lane / 8, row = lane % 8;  // of the four 8 x 8 matrices that ldmatrix reads
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      unsigned left[M / 16][4];
#pragma unroll
      for (int m = 0; m < M / 16; ++m) {
        const int first = warp_m() + m * 16;
        if constexpr (A_TRANSPOSED) {
          const int at = (k + eight / 2 * 8 + row) * Layout::STRIDE_A + first + eight % 2 * 8;
          ptx::ldmatrix_x4_trans(left[m], a + at);
        } else {
          const int at = (first + eight % 2 * 8 + row) * Layout::STRIDE_A + k + eight / 2 * 8;
          ptx::ldmatrix_x4(left[m], a + at);
        }
      }
#pragma unroll
      for (int n = 0; n < N / 8; n += 2) {
        unsigned right[4];
        const int at =
            (k + eight % 2 * 8 + row) * Layout::STRIDE_B + warp_n() + n * 8 + eight / 2 * 8;
        ptx::ldmatrix_x4_trans(right, b + at);
#pragma unroll
        for (int m = 0; m < M / 16; ++m) {
          multiply(sums[m][n], left[m], right[0], right[1]);
          multiply(sums[m][n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }

  __device__ static __forceinline__ void multiply(float (&sum)[4], const unsigned (&left)[4],
                                                  unsigned low, unsigned high) {
#if __CUDA_ARCH__ >= 800
    const unsigned right[2] = {low, high};
    if constexpr (same_type<T, __half>) {
      ptx::mma_f16(sum, left, right);
    } else {
      ptx::mma_bf16(sum, left, right);
    }
#else
    static_assert(same_type<T, __half>, "sm_75 multiplies float16 only");
    ptx::mma_f16_k8(sum, {left[0], left[1]}, {low});
    ptx::mma_f16_k8(sum, {left[2], left[3]}, {high});
#endif
  }

  __device__ __forceinline__ void add_tf32(const T* a, const T* b) {
#if __CUDA_ARCH__ >= 800
    const int lane = static_cast<int>(threadIdx.x) % WARP, group = lane / 4, quad = lane % 4;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
      unsigned left[M / 16][4];
#pragma unroll
      for (int m = 0; m < M / 16; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = warp_m() + m * 16 + group + i % 2 * 8, column = k + quad + i / 2 * 4;
          const int at =
              A_TRANSPOSED ? column * Layout::STRIDE_A + row : row * Layout::STRIDE_A + column;
          left[m][i] = ptx::to_tf32(a[at]);
        }
      }
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
        const T* column = b + (k + quad) * Layout::STRIDE_B + warp_n() + n * 8 + group;
        const unsigned right[2] = {ptx::to_tf32(column[0]),
                                   ptx::to_tf32(column[4 * Layout::STRIDE_B])};
#pragma unroll
        for (int m = 0; m < M / 16; ++m) ptx::mma_tf32(sums[m][n], left[m], right);
      }
    }
#endif
  }
};

// Every element type by fused multiply-add in its accumulator: exact products for float32, float64
// throughout.
template <class T, int TILE_M, int TILE_N, int DEPTH, bool A_TRANSPOSED>
struct ExactTile : Panels<T, TILE_M, TILE_N, DEPTH, A_TRANSPOSED> {
  using Layout = Panels<T, TILE_M, TILE_N, DEPTH, A_TRANSPOSED>;
  static constexpr int SIDE = 16, THREADS = SIDE * SIDE;
  static constexpr int M = TILE_M / SIDE, N = TILE_N / SIDE;

  accumulator<T> sums[M][N];

  __device__ __forceinline__ ExactTile() {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) sums[m][n] = 0;
    }
  }

  __device__ static __forceinline__ int row() { return static_cast<int>(threadIdx.x) / SIDE * M; }
  __device__ static __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % SIDE * N;
  }

  __device__ __forceinline__ void add(const T* a, const T* b) {
#pragma unroll 4
    for (int k = 0; k < DEPTH; ++k) {
      Vector<T, M> left;
      if constexpr (A_TRANSPOSED) {
        left = *reinterpret_cast<const Vector<T, M>*>(a + k * Layout::STRIDE_A + row());
      } else {
#pragma unroll
        for (int m = 0; m < M; ++m) left.at[m] = a[(row() + m) * Layout::STRIDE_A + k];
      }
      const auto right =
          *reinterpret_cast<const Vector<T, N>*>(b + k * Layout::STRIDE_B + column());
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          sums[m][n] += widen(left.at[m]) * widen(right.at[n]);
        }
      }
    }
  }

  template <class Visit>
  __device__ __forceinline__ void visit(Visit&& visit) const {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < N; n += 2) visit(row() + m, column() + n, sums[m][n], sums[m][n + 1]);
    }
  }
};

// Two neighbours of a row of `columns`, at once where they fit; what lies beyond the row is left
// out.
template <class T>
__device__ __forceinline__ void store_two(T* row, int64_t column, int64_t columns, T first,
                                          T second) {
  if (columns % 2 == 0) {
    if (column < columns) *reinterpret_cast<Vector<T, 2>*>(row + column) = {{first, second}};
    return;
  }
  if (column < columns) row[column] = first;
  if (column + 1 < columns) row[column + 1] = second;
}

}  // namespace pointlib
