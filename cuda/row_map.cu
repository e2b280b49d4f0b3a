// The rows of a kernel map: which taps feed each output row, from where, and in which order rows
// are best worked on.
#include "types.cuh"

namespace pointlib {

// The tap of a pair: offsets (volume + 1,) ascend, and offsets[tap] <= pair < offsets[tap + 1].
__device__ inline int64_t tap_of(const int64_t* __restrict__ offsets, int64_t volume,
                                 int64_t pair) {
  int64_t low = 0, high = volume;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (__ldg(offsets + middle) <= pair) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// mask (rows, words), zero before: sets bit `tap` of the output row of every pair.
__global__ void mark_taps(const int32_t* __restrict__ out_index,
                          const int64_t* __restrict__ offsets, int64_t pairs, int64_t volume,
                          int64_t words, uint32_t* __restrict__ mask) {
  const int64_t pair = global_thread();
  if (pair >= pairs) return;
  const int64_t tap = tap_of(offsets, volume, pair);
  atomicOr(mask + out_index[pair] * words + tap / 32, 1u << (tap % 32));
}

// counts (rows + 1,): 0, and then the taps of each row.
__global__ void count_taps(const uint32_t* __restrict__ mask, int64_t rows, int64_t words,
                           int32_t* __restrict__ counts) {
  const int64_t row = global_thread();
  if (row >= rows) return;
  int32_t count = 0;
  for (int64_t word = 0; word < words; word++) count += __popc(mask[row * words + word]);
  counts[row + 1] = count;
  if (row == 0) counts[0] = 0;
}

// neighbours[row_ptr[row] + taps of the row below this one] = input row, of every pair.
__global__ void place_neighbours(const int32_t* __restrict__ in_index,
                                 const int32_t* __restrict__ out_index,
                                 const int64_t* __restrict__ offsets, int64_t pairs, int64_t volume,
                                 int64_t words, const uint32_t* __restrict__ mask,
                                 const int32_t* __restrict__ row_ptr,
                                 int32_t* __restrict__ neighbours) {
  const int64_t pair = global_thread();
  if (pair >= pairs) return;
  const int64_t tap = tap_of(offsets, volume, pair), row = out_index[pair];
  const uint32_t* own = mask + row * words;
  int32_t place = row_ptr[row];
  for (int64_t word = 0; word < tap / 32; word++) place += __popc(own[word]);
  place += __popc(own[tap / 32] & ((1u << (tap % 32)) - 1));
  neighbours[place] = in_index[pair];
}

// What rows are sorted by, ascending: the Gray rank of the taps that a row has in a split, largest
// rank first, since rows of many taps should not be the last to start. Neighbours in Gray order
// differ in few taps, and seldom in the highest bits; so those stand for the rarest taps, which a
// tile pays for most. The blocks' y is the split, of taps [y * volume / splits,
// (y + 1) * volume / splits), and they share 8 bytes a tap. Where Key has fewer bits than the split
// has taps, each bit stands for `fold` taps that are about as rare and says whether there is any.
template <class Key, class Bits>
__global__ void rank_rows(const uint32_t* __restrict__ mask, int64_t rows, int64_t words,
                          const int64_t* __restrict__ offsets, int64_t volume, int64_t splits,
                          int64_t fold, Key* __restrict__ keys) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int64_t row = global_thread(), split = blockIdx.y;
  const int64_t first = split * volume / splits, end = (split + 1) * volume / splits;
  const int width = static_cast<int>(end - first);
  int32_t* pairs = reinterpret_cast<int32_t*>(shared_memory);
  int32_t* bit = pairs + width;
  for (int tap = threadIdx.x; tap < width; tap += blockDim.x) {
    pairs[tap] = static_cast<int32_t>(offsets[first + tap + 1] - offsets[first + tap]);
  }
  __syncthreads();
  for (int tap = threadIdx.x; tap < width; tap += blockDim.x) {
    int more = 0;
    for (int other = 0; other < width; other++) {
      more += pairs[other] > pairs[tap] || (pairs[other] == pairs[tap] && other < tap);
    }
    bit[tap] = more / static_cast<int32_t>(fold);
  }
  __syncthreads();
  if (row >= rows) return;

  uint64_t taps = 0;
  for (int64_t word = first / 32; word * 32 < end; word++) {
    uint32_t left = mask[row * words + word];
    if (word * 32 < first) left &= ~0u << (first % 32);
    if (end - word * 32 < 32) left &= (1u << (end % 32)) - 1;
    for (; left != 0; left &= left - 1) {
      taps |= uint64_t{1} << bit[word * 32 + __ffs(static_cast<int>(left)) - 1 - first];
    }
  }
  Bits rank = static_cast<Bits>(taps);
  for (int step = static_cast<int>(sizeof(Bits)) * 4; step > 0; step /= 2) {
    rank = static_cast<Bits>(rank ^ (rank >> step));
  }
  constexpr Bits largest = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  keys[split * rows + row] = static_cast<Key>(static_cast<Bits>(rank ^ largest));
}

}  // namespace pointlib
