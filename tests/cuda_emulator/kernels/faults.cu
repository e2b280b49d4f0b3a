// Kernels with planted faults. Each is a pair: with FAULTY the emulator must find what is wrong,
// without it the kernel computes what its comment says.
#include "../../../cuda/ptx.cuh"

namespace pointlib {

// out[i] = in[i + 1], around the block. Faulty: neighbours are read before they have all been
// written.
template <bool FAULTY>
__global__ void race(const float* in, float* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  float* tile = reinterpret_cast<float*>(shared_memory);
  tile[threadIdx.x] = in[threadIdx.x];
  if (!FAULTY) __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
}

// out[i] = sum of 4 rotations. Faulty: a value is overwritten before all have read it.
template <bool FAULTY>
__global__ void overwritten_too_early(const float* in, float* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  float* tile = reinterpret_cast<float*>(shared_memory);
  float value = in[threadIdx.x], sum = 0.0f;
  for (int i = 0; i < 4; ++i) {
    tile[threadIdx.x] = value;
    __syncthreads();
    value = tile[(threadIdx.x + 1) % blockDim.x];
    sum += value;
    if (!FAULTY) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// The same between the lanes of a warp.
template <bool FAULTY>
__global__ void race_in_warp(const float* in, float* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  float* tile = reinterpret_cast<float*>(shared_memory);
  tile[threadIdx.x] = in[threadIdx.x];
  if (!FAULTY) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// out[i] = 1 for lane 5, else 0. Faulty: lane 31, the last to arrive, writes while lane 5 may read.
template <bool FAULTY>
__global__ void race_after_meeting(int* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  int* flag = reinterpret_cast<int*>(shared_memory);
  if (threadIdx.x == 31) *flag = 0;
  __syncwarp();
  if (threadIdx.x == 31) *flag = 1;
  if (!FAULTY) __syncwarp();
  out[threadIdx.x] = threadIdx.x == 5 ? *flag : 0;
}

// last[0] = the largest number of a block. Faulty: the number of the block that comes last.
template <bool FAULTY>
__global__ void race_of_blocks(int* last) {
  if (threadIdx.x != 0) return;
  if (FAULTY) {
    last[0] = static_cast<int>(blockIdx.x);
  } else {
    atomicMax(last, static_cast<int>(blockIdx.x));
  }
}

#if __CUDA_ARCH__ >= 800

// out = in, two tiles of 4 floats a thread through two stages. Faulty: waits for the older tile
// only.
template <bool FAULTY>
__global__ void missing_wait(const float* in, float* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  float4* tile = reinterpret_cast<float4*>(shared_memory);
  const float4* source = reinterpret_cast<const float4*>(in);
  float4* destination = reinterpret_cast<float4*>(out);
  const int thread = threadIdx.x, threads = blockDim.x;
  for (int stage = 0; stage < 2; ++stage) {
    const int i = stage * threads + thread;
    ptx::cp_async<16>(&tile[i], &source[i], true);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<1>();
  destination[thread] = tile[thread];
  if (!FAULTY) ptx::cp_async_wait<0>();
  destination[threads + thread] = tile[threads + thread];
}

// out[i] = in[i + 1], around the block. Faulty: a thread has waited for its own copy, not for its
// neighbour's.
template <bool FAULTY>
__global__ void missing_barrier_after_wait(const float* in, float* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  float* tile = reinterpret_cast<float*>(shared_memory);
  ptx::cp_async<4>(&tile[threadIdx.x], &in[threadIdx.x], true);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  if (!FAULTY) __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
}

#endif

// out[i] = in[i] + in[i + 1], the last without its neighbour. Faulty: the last reads beyond the
// tensor.
template <bool FAULTY>
__global__ void out_of_bounds_read(const float* in, float* out, int64_t n) {
  const int64_t i = global_thread();
  if (i >= n) return;
  const bool has_next = FAULTY || i + 1 < n;
  out[i] = in[i] + (has_next ? in[i + 1] : 0.0f);
}

// The same before the first.
template <bool FAULTY>
__global__ void read_before_start(const float* in, float* out, int64_t n) {
  const int64_t i = global_thread();
  if (i >= n) return;
  const bool has_previous = FAULTY || i > 0;
  out[i] = in[i] + (has_previous ? in[i - 1] : 0.0f);
}

// out = in for n elements. Faulty: threads beyond n write too.
template <bool FAULTY>
__global__ void out_of_bounds_write(const float* in, float* out, int64_t n) {
  const int64_t i = global_thread();
  const bool inside = i < n;
  const float value = inside ? in[i] : 0.0f;
  if (FAULTY || inside) out[i] = value;
}

// c = a b^T with a (16, 8) and b (8, 8). Faulty: a's two registers are exchanged.
template <bool FAULTY>
__global__ void wrong_fragment(const __half* a, const __half* b, float* c) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const unsigned* rows = reinterpret_cast<const unsigned*>(a);  // two elements a word
  const unsigned* columns = reinterpret_cast<const unsigned*>(b);
  unsigned fragment[2] = {rows[g * 4 + t], rows[(g + 8) * 4 + t]};
  if (FAULTY) {
    const unsigned first = fragment[0];
    fragment[0] = fragment[1];
    fragment[1] = first;
  }
  const unsigned column[1] = {columns[g * 4 + t]};
  float d[4] = {};
  ptx::mma_f16_k8(d, fragment, column);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// out[i] = n. Faulty: threads from n on leave before the barrier.
template <bool FAULTY>
__global__ void exit_before_barrier(int* out, int64_t n) {
  const int i = threadIdx.x;
  if (FAULTY && i >= n) return;
  const int count = __syncthreads_count(i < n);
  if (i < n) out[i] = count;
}

// out[i] = i. Faulty: half of the threads wait at a barrier of their own.
template <bool FAULTY>
__global__ void divergent_barriers(int* out) {
  if (FAULTY && threadIdx.x % 64 < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = static_cast<int>(threadIdx.x);
}

// out[i] = sum of its warp's numbers. Faulty: some lanes do not take part.
template <bool FAULTY>
__global__ void missing_lanes(int* out) {
  int sum = static_cast<int>(threadIdx.x % 32);
  if (!FAULTY || threadIdx.x % 32 < 31) {
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, i);
  }
  __syncthreads();
  out[threadIdx.x] = sum;
}

// out[i] = i through shared memory. Faulty: one element beyond what the launch asked for.
template <bool FAULTY>
__global__ void shared_overrun(int* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  int* tile = reinterpret_cast<int*>(shared_memory);
  const int i = static_cast<int>(threadIdx.x);
  const int place = i + (FAULTY ? 4 : 0);
  tile[place] = i;
  out[i] = tile[place];
}

// out[i] = 0. Faulty: shared memory that nobody has written.
template <bool FAULTY>
__global__ void uninitialised_shared(int* out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  int* tile = reinterpret_cast<int*>(shared_memory);
  if (!FAULTY) tile[threadIdx.x] = 0;
  out[threadIdx.x] = tile[threadIdx.x];
}

// out = 4 floats from in. Faulty: from an address that is no multiple of 16.
template <bool FAULTY>
__global__ void misaligned(const float* in, float* out) {
  const float4 value = *reinterpret_cast<const float4*>(in + (FAULTY ? 1 : 0));
  *reinterpret_cast<float4*>(out) = value;
}

// out[0] = 1. Faulty: waits for a block that may run later.
template <bool FAULTY>
__global__ void waits_forever(int* out) {
  if (FAULTY) {
    while (atomicAdd(out, 0) == 0) {
    }
  }
  atomicExch(out, 1);
}

// out[i] = sum of its digits. Faulty: local arrays of a megabyte.
template <bool FAULTY>
__global__ void full_stack(int* out) {
  volatile int digits[FAULTY ? 1 << 18 : 4];
  int rest = static_cast<int>(threadIdx.x), sum = 0;
  for (int i = 0; i < 4; ++i) {
    digits[i] = rest % 10;
    rest /= 10;
  }
  for (int i = 0; i < 4; ++i) sum += digits[i];
  out[threadIdx.x] = sum;
}

// out[i] = in[i] / 2^shift. Faulty: shifts by the width of the type.
template <bool FAULTY>
__global__ void wide_shift(const int* in, int* out, int64_t shift) {
  out[threadIdx.x] = in[threadIdx.x] >> (shift + (FAULTY ? 32 : 0));
}

// out = in. Faulty: writes what it promised not to.
template <bool FAULTY>
__global__ void writes_const(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (FAULTY) const_cast<int*>(in)[threadIdx.x] = 0;
}

}  // namespace pointlib
