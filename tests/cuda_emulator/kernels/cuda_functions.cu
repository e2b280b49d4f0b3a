// Kernels that show what single functions of CUDA do, for comparison with what the documentation
// says.
#include "../../../cuda/ptx.cuh"

namespace pointlib {

// One row of `out` a function, one column a lane.
__global__ void shuffles(const int* in, int* out) {
  const int lane = threadIdx.x, value = in[lane];
  const int results[] = {
      __shfl_sync(ALL_LANES, value, 5),
      __shfl_sync(ALL_LANES, value, lane + 1),
      __shfl_sync(ALL_LANES, value, 2, 8),
      __shfl_up_sync(ALL_LANES, value, 3),
      __shfl_up_sync(ALL_LANES, value, 1, 16),
      __shfl_down_sync(ALL_LANES, value, 3),
      __shfl_down_sync(ALL_LANES, value, 5, 8),
      __shfl_xor_sync(ALL_LANES, value, 1),
      __shfl_xor_sync(ALL_LANES, value, 16),
      static_cast<int>(__ballot_sync(ALL_LANES, value % 3 == 0)),
      __any_sync(ALL_LANES, value == 7),
      __any_sync(ALL_LANES, value == 1000),
      __all_sync(ALL_LANES, value >= 0),
      __all_sync(ALL_LANES, value > 0),
  };
  for (int i = 0; i < 14; ++i) out[32 * i + lane] = results[i];
}

__global__ void votes(const int* in, int* out) {
  const int i = threadIdx.x;
  const int any = __syncthreads_or(in[i] == 3), all = __syncthreads_and(in[i] >= 0);
  const int none = __syncthreads_or(in[i] < 0), count = __syncthreads_count(in[i] % 2);
  out[i] = any + 2 * all + 4 * none + 8 * count;
}

// One number of `out` an operation, by all threads of all blocks; min and max on 64 bits.
__global__ void atomics(int* out, int64_t* extremes) {
  const int i = static_cast<int>(global_thread());
  atomicAdd(&out[0], i);
  atomicAdd(reinterpret_cast<unsigned*>(&out[1]), 2u);
  atomicOr(&out[2], 1 << i % 20);
  atomicAnd(&out[3], ~(1 << i % 20));
  atomicMin(&out[4], -i);
  atomicMax(reinterpret_cast<unsigned*>(&out[5]), static_cast<unsigned>(i));
  atomicMin(&extremes[0], static_cast<int64_t>(i) << 40);
  atomicMax(&extremes[1], static_cast<int64_t>(i) << 40);
  atomicAdd(reinterpret_cast<uint64_t*>(&extremes[2]), static_cast<uint64_t>(i) << 32);
  int expected = out[6];
  while (atomicCAS(&out[6], expected, expected + 1) != expected) expected = out[6];
  if (atomicExch(&out[7], 1) == 0) out[8] += 1;
}

// Which thread of which block wrote each number.
__global__ void places(int64_t* out) {
  const int64_t block = blockIdx.x + gridDim.x * (blockIdx.y + int64_t{gridDim.y} * blockIdx.z);
  out[block * blockDim.x + threadIdx.x] = block * 1000 + threadIdx.x;
}

__global__ void bits(const int* in, int* out, int64_t n) {
  const int64_t i = global_thread();
  if (i >= n) return;
  const int value = in[i];
  const uint64_t wide = static_cast<uint64_t>(static_cast<unsigned>(value)) << 20;
  const int results[] = {__popc(value),  __ffs(value),
                         __clz(value),   static_cast<int>(__brev(value)),
                         __popcll(wide), __clzll(static_cast<int64_t>(wide))};
  for (int k = 0; k < 6; ++k) out[n * k + i] = results[k];
}

template <class T>
__global__ void to_float(const T* in, float* out, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) out[i] = widen(in[i]);
}

template <class T>
__global__ void from_float(const float* in, T* out, int64_t n) {
  const int64_t i = global_thread();
  if (i < n) out[i] = narrow<T>(in[i]);
}

// Sum of what stands behind the pointers, times `factor`; a null pointer adds nothing.
__global__ void arguments(const float* a, const float* b, float* out, int64_t n, float factor) {
  const int64_t i = global_thread();
  if (i < n) out[i] = (a[i] + (b == nullptr ? 0.0f : b[i])) * factor;
}

// Promises the compiler at most WARPS warps, and three blocks of a multiprocessor at least.
template <class T, int WARPS = 2>
__global__ void __launch_bounds__(WARPS* WARP, 3) bounded(T* out) {
  out[global_thread()] = T(1);
}

// Barriers and shuffles, for their cost.
__global__ void waits(float* out, int64_t rounds) {
  float sum = static_cast<float>(threadIdx.x);
  for (int64_t i = 0; i < rounds; ++i) {
    __syncthreads();
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum *= 0.5f;
  }
  out[threadIdx.x] = sum;
}

}  // namespace pointlib
