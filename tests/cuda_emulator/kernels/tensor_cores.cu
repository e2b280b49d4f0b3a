// One warp's tensor-core products on registers that stand in memory, lane by lane, and its matrix
// loads.
#include "../../../cuda/ptx.cuh"

namespace pointlib {

// a (32, A), b (32, B): the lanes' registers; d (32, D): their sums before and after.
#define PRODUCT(name, Sum, A, B, D)                                     \
  __global__ void name(const unsigned* a, const unsigned* b, Sum* d) {  \
    unsigned fragment_a[A], fragment_b[B];                              \
    Sum sums[D];                                                        \
    for (int i = 0; i < A; ++i) fragment_a[i] = a[threadIdx.x * A + i]; \
    for (int i = 0; i < B; ++i) fragment_b[i] = b[threadIdx.x * B + i]; \
    for (int i = 0; i < D; ++i) sums[i] = d[threadIdx.x * D + i];       \
    ptx::name(sums, fragment_a, fragment_b);                            \
    for (int i = 0; i < D; ++i) d[threadIdx.x * D + i] = sums[i];       \
  }

PRODUCT(mma_f16_k8, float, 2, 1, 4)
PRODUCT(mma_s8_k16, int, 1, 1, 2)

#if __CUDA_ARCH__ >= 800

PRODUCT(mma_f16, float, 4, 2, 4)
PRODUCT(mma_bf16, float, 4, 2, 4)
PRODUCT(mma_tf32, float, 4, 2, 4)
PRODUCT(mma_s8, int, 4, 2, 4)

__global__ void to_tf32(const float* in, float* out, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) out[i] = __uint_as_float(ptx::to_tf32(in[i]));
}

#endif

// COUNT matrices of 8 x 8 elements, one after the other; out (COUNT, 32, 2): the elements that each
// lane received.
template <int COUNT, bool TRANSPOSED>
__global__ void load_matrices(const short* in, short* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  short* tile = reinterpret_cast<short*>(shared_memory);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 64 * COUNT; i += 32) tile[i] = in[i];
  __syncwarp();
  unsigned r[COUNT];
  const short* row = tile + lane % (8 * COUNT) * 8;
  if constexpr (COUNT == 4 && TRANSPOSED) ptx::ldmatrix_x4_trans(r, row);
  if constexpr (COUNT == 4 && !TRANSPOSED) ptx::ldmatrix_x4(r, row);
  if constexpr (COUNT == 2 && TRANSPOSED) ptx::ldmatrix_x2_trans(r, row);
  if constexpr (COUNT == 2 && !TRANSPOSED) ptx::ldmatrix_x2(r, row);
  for (int i = 0; i < COUNT; ++i) {
    out[(i * 32 + lane) * 2] = static_cast<short>(r[i] & 0xffff);
    out[(i * 32 + lane) * 2 + 1] = static_cast<short>(r[i] >> 16);
  }
}

// Rows `offset` bytes from where they should be.
__global__ void load_matrices_at(int* out, int64_t offset) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  if (threadIdx.x < 16) reinterpret_cast<float4*>(shared_memory)[threadIdx.x] = {};
  __syncwarp();
  unsigned r[2];
  ptx::ldmatrix_x2(r, shared_memory + threadIdx.x % 16 * 16 + offset);
  out[threadIdx.x] = static_cast<int>(r[0]);
}

#if __CUDA_ARCH__ >= 800

// out = in through cp.async of BYTES each, zeros from element `valid` on, where nothing is read.
template <int BYTES>
__global__ void copy(const float* in, float* out, int64_t valid, int64_t shared_offset) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  constexpr int ELEMENTS = BYTES / 4;
  const int64_t first = threadIdx.x * ELEMENTS;
  float* place = reinterpret_cast<float*>(shared_memory + shared_offset) + first;
  ptx::cp_async<BYTES>(place, in + first, first < valid);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  for (int i = 0; i < ELEMENTS; ++i) out[first + i] = place[i];
}

#endif

}  // namespace pointlib
