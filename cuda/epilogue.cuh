// What follows a sum of products before it is written: earlier partial sums, scale, shift,
// residual, activation, and one rounding.
#pragma once

#include "types.cuh"

namespace pointlib {

// N elements that are read or written at once.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vector {
  T at[N];
};

// out = act(scale * sum + shift + residual) for a matrix of `channels` columns. A sum that several
// launches share is kept in `partial` from the first to the last of them. The residual may be the
// output itself.
template <class T>
struct Epilogue {
  using Sum = accumulator<T>;

  const Sum* scale;   // (channels,), or null for 1
  const Sum* shift;   // (channels,), or null for 0
  const T* residual;  // (rows, channels), or null for 0
  T* out;             // (rows, channels)
  Sum* partial;       // (rows, channels), or null where one launch sums everything
  Sum slope;          // of the activation for values below 0
  int64_t channels;
  bool first, last;  // of the launches that share a sum

  // Finish N neighbouring channels of a row. Wider than one element only where every row begins at
  // 16 bytes.
  template <int N>
  __device__ __forceinline__ void write(int64_t row, int64_t channel, Vector<Sum, N> sum) const {
    const int64_t at = row * channels + channel;
    if (!first) {
      const auto before = *reinterpret_cast<const Vector<Sum, N>*>(partial + at);
#pragma unroll
      for (int i = 0; i < N; ++i) sum.at[i] += before.at[i];
    }
    if (!last) {
      *reinterpret_cast<Vector<Sum, N>*>(partial + at) = sum;
      return;
    }
    if (scale) {
      const auto factor = *reinterpret_cast<const Vector<Sum, N>*>(scale + channel);
#pragma unroll
      for (int i = 0; i < N; ++i) sum.at[i] *= factor.at[i];
    }
    if (shift) {
      const auto term = *reinterpret_cast<const Vector<Sum, N>*>(shift + channel);
#pragma unroll
      for (int i = 0; i < N; ++i) sum.at[i] += term.at[i];
    }
    if (residual) {
      const auto term = *reinterpret_cast<const Vector<T, N>*>(residual + at);
#pragma unroll
      for (int i = 0; i < N; ++i) sum.at[i] += widen(term.at[i]);
    }
    Vector<T, N> rounded;
#pragma unroll
    for (int i = 0; i < N; ++i) rounded.at[i] = narrow<T>(activate(sum.at[i]));
    *reinterpret_cast<Vector<T, N>*>(out + at) = rounded;
  }

  // Leaky; a slope of 0 gives 0 for minus infinity too, and lets NaN through.
  __device__ __forceinline__ Sum activate(Sum value) const {
    if (value < 0) return slope == 0 ? Sum(0) : value * slope;
    return value;
  }
};

}  // namespace pointlib
