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

// Feature rows are addressed in vectors of N channels: the compiler joins the parts of a Pack only
// if it sees that they are aligned.
template <int N, class T>
__device__ inline Pack<T, N> load(const T* from, int64_t vector) {
  return reinterpret_cast<const Pack<T, N>*>(from)[vector];
}
template <int N, class T>
__device__ inline void store(T* to, int64_t vector, const Pack<T, N>& values) {
  reinterpret_cast<Pack<T, N>*>(to)[vector] = values;
}

// The same for N values of another type, in as many moves as it takes.
template <class S, int N>
constexpr int PART = N * sizeof(S) <= 16 ? N : 16 / sizeof(S);
template <class S, int N>
__device__ inline void load_all(const S* from, int64_t vector, S (&values)[N]) {
  constexpr int P = PART<S, N>;
#pragma unroll
  for (int i = 0; i < N / P; i++) {
    const Pack<S, P> part = load<P>(from, vector * (N / P) + i);
#pragma unroll
    for (int j = 0; j < P; j++) values[i * P + j] = part.at[j];
  }
}
template <class S, int N>
__device__ inline void store_all(S* to, int64_t vector, const S (&values)[N]) {
  constexpr int P = PART<S, N>;
#pragma unroll
  for (int i = 0; i < N / P; i++) {
    Pack<S, P> part;
#pragma unroll
    for (int j = 0; j < P; j++) part.at[j] = values[i * P + j];
    store(to, vector * (N / P) + i, part);
  }
}

// Blocks of 256 threads that share a multiprocessor's registers. Vectors of the most or the largest
// values need more than a quarter of them.
template <int N>
constexpr int BLOCKS = N == 8 || N == 2 ? 3 : 4;

// The threads of a block as `groups` rows of `lanes` vectors. Rows of more vectors are continued by
// blocks of the next blockIdx.y.
struct Lanes {
  int lanes, groups, group;
  int64_t vector;
  bool active;  // whether the thread has a vector at all

  __device__ Lanes(int64_t lanes_of_row, int64_t vectors)
      : lanes(static_cast<int>(lanes_of_row)),
        groups(static_cast<int>(blockDim.x) / lanes),
        group(static_cast<int>(threadIdx.x) / lanes) {
    vector = blockIdx.y * lanes_of_row + threadIdx.x - group * lanes;
    active = group < groups && vector < vectors;
  }
};

// Reduces what the groups hold for each lane to group 0, always in the same order:
// merge(other_thread) takes the state of another thread into this thread's. States are in shared
// memory, written before. All threads of the block must come here.
template <class Merge>
__device__ inline void merge_groups(const Lanes& at, Merge merge) {
  int span = 1;
  while (span < at.groups) span *= 2;
  for (span /= 2; span > 0; span /= 2) {
    __syncthreads();
    if (at.active && at.group < span && at.group + span < at.groups)
      merge(static_cast<int>(threadIdx.x) + span * at.lanes);
  }
}

}  // namespace pointlib
