// Packed, order-preserving keys of voxels: their layout is that of pointlib/ops/coords.py. Also
// what every map needs around them: blocks shared out among threads, and sorting.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>

#include "memory.h"

namespace pointlib {

using Key = uint64_t;  // below 2^63; sums and products of its fields may wrap on the way

// Calls body(block, worker) for every block, worker < threads. Blocks must not depend on each
// other.
template <typename Body>
void for_blocks(int64_t blocks, int64_t threads, Body body) {
  if (threads <= 1 || blocks <= 1) {
    for (int64_t block = 0; block < blocks; block++) body(block, 0);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for num_threads(static_cast<int>(std::min(threads, blocks))) \
    schedule(dynamic, 1)
  for (int64_t block = 0; block < blocks; block++) {
    try {
      body(block, omp_get_thread_num());
    } catch (...) {
#pragma omp critical(pointlib_blocks)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// `count` rows cut into blocks of `size`.
struct Blocks {
  int64_t count, size;

  int64_t number() const { return (count + size - 1) / size; }
  int64_t begin(int64_t block) const { return block * size; }
  int64_t end(int64_t block) const { return std::min(count, (block + 1) * size); }
};

// Rows that are worth a second thread.
constexpr int64_t ROWS_PER_BLOCK = 8192;

inline Blocks blocks_of(int64_t count) { return {count, ROWS_PER_BLOCK}; }

// Smallest and largest coordinate of batch, x, y, z, both inclusive.
struct Box {
  int64_t low[4], high[4];

  void cover(const Box& other);
};

// Bounds of (rows, 4); rows > 0.
Box bounds(const int32_t* coords, int64_t rows, int64_t threads);

struct Layout {
  int64_t lower[4];
  int shift[4];
  int bits;  // of a whole key; more than 63 do not fit

  explicit Layout(const Box& box);
  bool fits() const { return bits <= 63; }
};

// The key of a voxel as a sum: start + batch * step[0] + x * step[1] + y * step[2] + z * step[3].
struct Packing {
  Key start, step[4];

  // Of the voxel scale * xyz + shift.
  Packing(const Layout& layout, const int64_t* scale, const int64_t* shift);
  Key operator()(int64_t batch, int64_t x, int64_t y, int64_t z) const {
    return start + static_cast<Key>(batch) * step[0] + static_cast<Key>(x) * step[1] +
           static_cast<Key>(y) * step[2] + static_cast<Key>(z) * step[3];
  }
};

// keys -> coords (count, 4).
void unpack(const Key* keys, int64_t count, const Layout& layout, int32_t* coords, int64_t threads);

// How the keys of an array follow each other.
struct KeyOrder {
  bool descends = false, repeats = false;

  void next(Key before, Key key) {
    descends |= key < before;
    repeats |= key == before;
  }
};
KeyOrder order_of(const Key* keys, int64_t count, int64_t threads);

// Sorts by bits [low, high), stably. `spare` is as large as `items`; the two may change places.
void radix_sort(Scratch<Key>& items, Scratch<Key>& spare, int64_t count, int low, int high,
                int64_t threads);

// Sorts keys of `bits` bits, stably, and writes where each came from.
template <typename Row>
void sort_rows(Key* keys, int64_t count, int bits, Row* rows, int64_t threads);

// Takes equal neighbours out; returns how many are left.
int64_t drop_repeats(Key* keys, int64_t count, int64_t threads);

// Sorts keys of `bits` bits and leaves each once; returns how many.
int64_t sort_distinct(Scratch<Key>& keys, int64_t count, int bits, int64_t threads);

inline int bit_length(uint64_t value) { return value == 0 ? 0 : 64 - __builtin_clzll(value); }

}  // namespace pointlib
