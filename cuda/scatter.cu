// Sums and maxima of feature rows over sorted pairs (segments.cu): scatter, pooling, and the
// transpose of devoxelization. An output row is folded by one group of threads in the order of its
// pairs. A row of very many pairs is folded tile by tile, tiles side by side, and then over its
// tiles; where the tiles' bounds lie depends on the pairs alone.
#include "rows.cuh"

namespace pointlib {

// What pairs bring, and where it goes.
template <class T>
struct Segments {
  const T* __restrict__ src;  // (num_in, vectors)
  int64_t vectors;
  const int32_t* __restrict__ source;          // (pairs,) row of src, or -1
  const int32_t* __restrict__ pair;            // (pairs,) row of weights
  const accumulator<T>* __restrict__ weights;  // or null for 1
  const int32_t* __restrict__ starts;          // (rows + 1,)
};

template <class T>
struct WideSum {
  using type = accumulator<T>;
};
template <>
struct WideSum<float> {  // sums of very many float32 are carried in float64
  using type = double;
};

// Reduction by addition.
template <class T>
struct Sum {
  using Element = T;
  using State = accumulator<T>;
  using Wide = typename WideSum<T>::type;  // of a row of very many pairs

  template <class S>
  static __device__ void clear(S& total) {
    total = 0;
  }
  template <class S>
  static __device__ void take(S& total, T value, accumulator<T> weight, int32_t) {
    total += static_cast<S>(weight) * static_cast<S>(widen(value));
  }
  template <class S>
  static __device__ void merge(S& total, const S& later) {
    total += later;
  }
  template <class S>
  static __device__ void divide(S& total, int32_t count) {
    total /= static_cast<S>(count);
  }
  template <class S, int N>
  static __device__ void write(const S (&total)[N], int64_t vector, T* out, int64_t*) {
    Pack<T, N> values;
#pragma unroll
    for (int i = 0; i < N; i++) values.at[i] = narrow<T>(static_cast<State>(total[i]));
    store(out, vector, values);
  }
};

// A row number as wide as the value beside it, so that nothing undefined lies between them.
template <class S>
struct RowNumber {
  using type = int32_t;
};
template <>
struct RowNumber<double> {
  using type = int64_t;
};

// Reduction to the largest value and the row it came from, the lowest at a tie; NaN is larger than
// every number.
template <class T>
struct Max {
  using Element = T;
  struct State {
    accumulator<T> best;
    typename RowNumber<accumulator<T>>::type row;  // -1 while there is none
  };
  using Wide = State;

  static __device__ void clear(State& state) { state = {0, -1}; }
  static __device__ void divide(State&, int32_t) {}  // there is no mean maximum
  static __device__ void merge(State& state, const State& later) {
    const accumulator<T> value = later.best, old = state.best;
    const bool nan = value != value, old_nan = old != old;
    const bool tie = value == old || (nan && old_nan);
    const bool better =
        state.row < 0 || value > old || (nan && !old_nan) || (tie && later.row < state.row);
    if (later.row >= 0 && better) state = later;
  }
  static __device__ void take(State& state, T value, accumulator<T>, int32_t row) {
    merge(state, State{widen(value), row});
  }
  template <int N>
  static __device__ void write(const State (&state)[N], int64_t vector, T* out, int64_t* argmax) {
    Pack<T, N> values;
    int64_t rows[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      values.at[i] = narrow<T>(state[i].best);
      rows[i] = state[i].row;
    }
    store(out, vector, values);
    store_all(argmax, vector, rows);
  }
};

// Takes pairs [from, to) into the state of N channels, in their order.
template <class Op, int N, class S>
__device__ inline void fold(const Segments<typename Op::Element>& in, int64_t vector, int64_t from,
                            int64_t to, S (&state)[N]) {
  using T = typename Op::Element;
  constexpr int AHEAD = sizeof(state) > 32 ? 2 : 4;  // rows on their way at once
  for (int64_t p = from; p < to; p += AHEAD) {
    int32_t source[AHEAD];
    accumulator<T> weight[AHEAD];
    Pack<T, N> values[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      source[i] = p + i < to ? in.source[p + i] : -1;
      weight[i] = 1;
    }
    if (in.weights != nullptr) {
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        if (source[i] >= 0) weight[i] = in.weights[in.pair[p + i]];
        if (weight[i] == 0) source[i] = -1;  // a row of no weight may hold anything
      }
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (source[i] >= 0) values[i] = load<N>(in.src, source[i] * in.vectors + vector);
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (source[i] < 0) continue;
#pragma unroll
      for (int c = 0; c < N; c++) Op::take(state[c], values[i].at[c], weight[i], source[i]);
    }
  }
}

// Makes a mean of the sum over `pairs` pairs where counts (rows, 1) are given, and notes how many.
template <class Op, int N, class S>
__device__ inline void divide(S (&state)[N], int32_t pairs, const Lanes& at, int64_t row,
                              accumulator<typename Op::Element>* counts) {
  if (counts == nullptr) return;
  const int32_t count = max(pairs, 1);
#pragma unroll
  for (int c = 0; c < N; c++) Op::divide(state[c], count);
  if (at.vector == 0) counts[row] = count;
}

// The share of `group` when `groups` divide [first, last) among them.
struct Share {
  int64_t from, to;
  __device__ Share(int64_t first, int64_t last, int group, int groups) {
    const uint32_t each = (static_cast<uint32_t>(last - first) + groups - 1) / groups;
    from = min(last, first + static_cast<int64_t>(each) * group);
    to = min(last, from + each);
  }
};

// Merges the states of all groups into that of group 0, through shared memory.
template <class Op, int N, class S>
__device__ inline void merge_states(const Lanes& at, S (&state)[N], S* shared) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // until whoever read the last states is done
#pragma unroll
  for (int c = 0; c < N; c++) shared[c * threads + thread] = state[c];
  merge_groups(at, [&](int other) {
#pragma unroll
    for (int c = 0; c < N; c++) {
      Op::merge(state[c], shared[c * threads + other]);
      shared[c * threads + thread] = state[c];
    }
  });
}

// Reduces rows of at most `tile` pairs into out (and argmax, for a maximum; and counts, for a
// mean), and each tile's pairs of a longer row into partial (tiles, 2, channels) of Op::Wide: of
// the first pair's row, and of the last pair's. The first `tiles` blocks have a tile, the others
// rows.
template <class Op, int N>
__global__ void __launch_bounds__(256, BLOCKS<N>)
    reduce_rows(const typename Op::Element* __restrict__ src, int64_t vectors,
                const int32_t* __restrict__ source, const int32_t* __restrict__ pair,
                const accumulator<typename Op::Element>* __restrict__ weights,
                const int32_t* __restrict__ starts, const int32_t* __restrict__ ends, int64_t rows,
                int64_t tile, int64_t tiles, int64_t lanes, typename Op::Wide* __restrict__ partial,
                typename Op::Element* __restrict__ out, int64_t* __restrict__ argmax,
                accumulator<typename Op::Element>* __restrict__ counts) {
  const Segments<typename Op::Element> in{src, vectors, source, pair, weights, starts};
  const Lanes at(lanes, vectors);
  if (blockIdx.x >= tiles) {
    const int64_t row = (blockIdx.x - tiles) * at.groups + at.group;
    if (!at.active || row >= rows) return;
    const int32_t from = starts[row], to = starts[row + 1];
    if (to - from > tile) return;
    typename Op::State state[N];
#pragma unroll
    for (int c = 0; c < N; c++) Op::clear(state[c]);
    fold<Op, N>(in, at.vector, from, to, state);
    divide<Op>(state, to - from, at, row, counts);
    Op::write(state, row * vectors + at.vector, out, argmax);
    return;
  }
  extern __shared__ __align__(16) unsigned char shared_memory[];
  typename Op::Wide* shared = reinterpret_cast<typename Op::Wide*>(shared_memory);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * tile;
  for (int end = 0; end < 2; end++) {
    const int32_t row = ends[2 * blockIdx.x + end];
    if (row < 0) continue;
    const Share share(max(static_cast<int64_t>(starts[row]), first),
                      min(static_cast<int64_t>(starts[row + 1]), first + tile), at.group,
                      at.groups);
    typename Op::Wide state[N];
#pragma unroll
    for (int c = 0; c < N; c++) Op::clear(state[c]);
    if (at.active) fold<Op, N>(in, at.vector, share.from, share.to, state);
    merge_states<Op>(at, state, shared);
    if (at.active && at.group == 0) {
      store_all(partial, (2 * static_cast<int64_t>(blockIdx.x) + end) * vectors + at.vector, state);
    }
  }
}

// Merges what reduce_rows left of rows of more than `tile` pairs, each in the block that its first
// tile comes to.
template <class Op, int N>
__global__ void __launch_bounds__(256, BLOCKS<N>)
    merge_tiles(const typename Op::Wide* __restrict__ partial, int64_t vectors,
                const int32_t* __restrict__ starts, const int32_t* __restrict__ ends, int64_t tile,
                int64_t tiles, int64_t lanes, typename Op::Element* __restrict__ out,
                int64_t* __restrict__ argmax,
                accumulator<typename Op::Element>* __restrict__ counts) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  typename Op::Wide* shared = reinterpret_cast<typename Op::Wide*>(shared_memory);
  const Lanes at(lanes, vectors);
  for (int64_t first = blockIdx.x; first < tiles; first += gridDim.x) {
    for (int end = 0; end < 2; end++) {
      const int32_t row = ends[2 * first + end];
      if (row < 0 || starts[row] < first * tile) continue;
      const int32_t last = (starts[row + 1] - 1) / static_cast<int32_t>(tile);
      const Share share(first, last + 1, at.group, at.groups);
      typename Op::Wide state[N];
#pragma unroll
      for (int c = 0; c < N; c++) Op::clear(state[c]);
      for (int64_t t = share.from; at.active && t < share.to; t++) {
        typename Op::Wide part[N];
        load_all(partial, (2 * t + (t == first ? end : 0)) * vectors + at.vector, part);
#pragma unroll
        for (int c = 0; c < N; c++) Op::merge(state[c], part[c]);
      }
      merge_states<Op>(at, state, shared);
      if (at.active && at.group == 0) {
        divide<Op>(state, starts[row + 1] - starts[row], at, row, counts);
        Op::write(state, row * vectors + at.vector, out, argmax);
      }
    }
  }
}

// out[i] = src[index[i]] of rows that are `units` Units long, zeros where the index is -1. `inside`
// (unless null) was true, and becomes false where an index is neither -1 nor in [0, num_in).
template <class Unit>
__global__ void gather_rows(const Unit* __restrict__ src, int64_t num_in, int64_t units,
                            const int64_t* __restrict__ index, int64_t rows, int64_t lanes,
                            Unit* __restrict__ out, bool* __restrict__ inside) {
  const Lanes at(lanes, units);
  constexpr int EACH = 4;  // rows of a group
  if (!at.active) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * at.groups * EACH + at.group;
  Unit values[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int64_t to = first + i * at.groups;
    const int64_t row = to < rows ? index[to] : -1;
    if (inside != nullptr && (row < -1 || row >= num_in)) *inside = false;
    values[i] = Unit{};
    if (row >= 0 && row < num_in) values[i] = src[row * units + at.vector];
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int64_t to = first + i * at.groups;
    if (to < rows) out[to * units + at.vector] = values[i];
  }
}

// out[i, c] = src[index[i, c], c], zero where the index is -1; `inside` as in gather_rows.
template <class Unit>
__global__ void gather_elements(const Unit* __restrict__ src, int64_t num_in, int64_t channels,
                                const int64_t* __restrict__ index, int64_t rows, int64_t lanes,
                                Unit* __restrict__ out, bool* __restrict__ inside) {
  const Lanes at(lanes, channels);
  const int64_t to = static_cast<int64_t>(blockIdx.x) * at.groups + at.group;
  if (!at.active || to >= rows) return;
  const int64_t row = index[to * channels + at.vector];
  if (inside != nullptr && (row < -1 || row >= num_in)) *inside = false;
  Unit value{};
  if (row >= 0 && row < num_in) value = src[row * channels + at.vector];
  out[to * channels + at.vector] = value;
}

// places[i, c] = index[i, c] * channels + c, where an element goes in (num_rows, channels); -1
// where the index is -1. `inside` as in gather_rows.
__global__ void element_places(const int64_t* __restrict__ index, int64_t rows, int64_t channels,
                               int64_t num_rows, int64_t lanes, int64_t* __restrict__ places,
                               bool* __restrict__ inside) {
  const Lanes at(lanes, channels);
  const int64_t from = static_cast<int64_t>(blockIdx.x) * at.groups + at.group;
  if (!at.active || from >= rows) return;
  const int64_t row = index[from * channels + at.vector];
  if (inside != nullptr && (row < -1 || row >= num_rows)) *inside = false;
  places[from * channels + at.vector] =
      row < 0 || row >= num_rows ? -1 : row * channels + at.vector;
}

}  // namespace pointlib
