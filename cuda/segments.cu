// Pairs (source row, output row) sorted by output row, so that each output row has one owner and
// one order of summation. The sort itself is torch's; this is what stands before and after it.
#include "types.cuh"

namespace pointlib {

// Sort keys of output rows: the row, or `rows` (the last) for a pair that goes nowhere, or comes
// from nowhere (in_index, unless null, is -1). `inside` (unless null) was true, and becomes false
// where a row is neither -1 nor in [0, rows).
template <class Index, class Key>
__global__ void segment_keys(const Index* __restrict__ index, const int32_t* __restrict__ in_index,
                             int64_t pairs, int64_t rows, Key* __restrict__ keys,
                             bool* __restrict__ inside) {
  const int64_t pair = global_thread();
  if (pair >= pairs) return;
  const int64_t row = index[pair];
  if (inside != nullptr && (row < -1 || row >= rows)) *inside = false;
  const bool nowhere = row < 0 || row >= rows || (in_index != nullptr && in_index[pair] < 0);
  keys[pair] = static_cast<Key>(nowhere ? rows : row);
}

// Number of sorted keys below `row`.
template <class Key>
__device__ inline int64_t keys_below(const Key* __restrict__ keys, int64_t pairs, int64_t row) {
  int64_t low = 0, high = pairs;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<int64_t>(__ldg(keys + middle)) < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// `row` if it has more than `tile` pairs, else -1.
template <class Key>
__device__ inline int32_t if_long(const Key* __restrict__ keys, int64_t pairs, int64_t row,
                                  int64_t tile) {
  const int64_t length = keys_below(keys, pairs, row + 1) - keys_below(keys, pairs, row);
  return length > tile ? static_cast<int32_t>(row) : -1;
}

// From sorted keys (pairs,) and the pairs they came from: starts (rows + 1,), the first pair of
// each row; source (pairs,), the source row of each, -1 for none; pair (pairs,), its number before
// sorting, unless null; and ends (tiles, 2). A source row is in_index[pair], or pair / each without
// an in_index. A tile is `tile` sorted pairs in a row, and ends holds the rows that its first and
// last pair belong to, or -1 if that row has `tile` pairs or fewer, or is the same as the first.
// `inside` as in segment_keys, for in_index and num_in.
template <class Key>
__global__ void segment_pairs(const Key* __restrict__ keys, const int64_t* __restrict__ order,
                              const int32_t* __restrict__ in_index, int64_t each, int64_t pairs,
                              int64_t num_in, int64_t rows, int64_t tile,
                              int32_t* __restrict__ starts, int32_t* __restrict__ source,
                              int32_t* __restrict__ pair, int32_t* __restrict__ ends,
                              bool* __restrict__ inside) {
  const int64_t thread = global_thread();
  if (thread <= rows) starts[thread] = static_cast<int32_t>(keys_below(keys, pairs, thread));
  if (thread < pairs) {
    const int64_t number = order[thread];
    int64_t row = in_index == nullptr ? number / each : in_index[number];
    if (row < -1 || row >= num_in) {
      if (inside != nullptr) *inside = false;
      row = -1;
    }
    source[thread] = static_cast<int32_t>(row);
    if (pair != nullptr) pair[thread] = static_cast<int32_t>(number);
  }
  if (thread * tile < pairs) {
    const int64_t used = keys_below(keys, pairs, rows), first = thread * tile;
    int32_t head = -1, tail = -1;
    if (first < used) {
      const int64_t last = min(first + tile, used) - 1;
      head = if_long(keys, pairs, keys[first], tile);
      if (keys[last] != keys[first]) tail = if_long(keys, pairs, keys[last], tile);
    }
    ends[2 * thread] = head;
    ends[2 * thread + 1] = tail;
  }
}

}  // namespace pointlib
