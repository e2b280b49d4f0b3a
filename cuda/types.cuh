// What every kernel includes: fixed-width integers, the element types of features, and their
// conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace pointlib {

using int8_t = signed char;
using uint8_t = unsigned char;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Sums of T are kept in this type.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator = typename Accumulator<T>::type;

__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }

// Round an accumulator to nearest, ties to even.
template <class T>
__device__ inline T narrow(accumulator<T> value) {
  return value;
}
template <>
__device__ inline __half narrow<__half>(float value) {
  return __float2half(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}

// The thread's number in a one-dimensional grid.
__device__ inline int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace pointlib
