// Rows of features as the threads of a block share them: a thread has a few channels that lie side
// by side, a group of threads has a row.
#pragma once

#include "types.cuh"

namespace pointlib {

// N channels that are moved together, 16 bytes at most.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T at[N];
};

template <int N, class T>
__device__ inline Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T>
__device__ inline void store(T* to, const Pack<T, N>& values) {
  *reinterpret_cast<Pack<T, N>*>(to) = values;
}

// The threads of a block as `groups` rows of `lanes` vectors of N channels. Rows of more vectors
// are continued by blocks of the next blockIdx.y.
template <int N>
struct Lanes {
  int lanes, groups, group;
  int64_t channel;
  bool active;  // whether the thread has channels at all

  __device__ Lanes(int64_t lanes_of_row, int64_t channels)
      : lanes(static_cast<int>(lanes_of_row)),
        groups(static_cast<int>(blockDim.x) / lanes),
        group(static_cast<int>(threadIdx.x) / lanes) {
    const int lane = static_cast<int>(threadIdx.x) - group * lanes;
    channel = (blockIdx.y * lanes_of_row + lane) * N;
    active = group < groups && channel < channels;
  }
};

// Reduces what the groups hold for each lane to group 0, always in the same order:
// merge(other_thread) takes the state of another thread into this thread's. States are in shared
// memory, written before. All threads of the block must come here.
template <int N, class Merge>
__device__ inline void merge_groups(const Lanes<N>& at, Merge merge) {
  int span = 1;
  while (span < at.groups) span *= 2;
  for (span /= 2; span > 0; span /= 2) {
    __syncthreads();
    if (at.active && at.group < span && at.group + span < at.groups)
      merge(static_cast<int>(threadIdx.x) + span * at.lanes);
  }
}

}  // namespace pointlib
