// Distinct keys with their rows, and the rows of wanted keys.
#include <limits>
#include <vector>

#include "engine.h"
#include "keys.h"

namespace pointlib {

namespace {

// Any int64, ascending, as the distance from the smallest; and the row of each, smaller rows first
// among equal ones. No rows where row i has key i.
struct SortedKeys {
  int64_t count, lowest = 0;
  int bits = 0;
  Scratch<Key> keys;
  Scratch<int64_t> rows;

  SortedKeys(const int64_t* given, int64_t number, int64_t threads) : count(number) {
    const Blocks blocks = blocks_of(count);
    std::vector<int64_t> lows(static_cast<size_t>(blocks.number())), highs(lows.size());
    for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
      const auto ends = std::minmax_element(given + blocks.begin(block), given + blocks.end(block));
      lows[static_cast<size_t>(block)] = *ends.first;
      highs[static_cast<size_t>(block)] = *ends.second;
    });
    if (count == 0) return;
    lowest = *std::min_element(lows.begin(), lows.end());
    bits = bit_length(distance(*std::max_element(highs.begin(), highs.end())));
    keys = scratch<Key>(count);
    for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
      for (int64_t i = blocks.begin(block); i < blocks.end(block); i++)
        keys[i] = distance(given[i]);
    });
    if (order_of(keys.get(), count, threads).descends) {
      rows = scratch<int64_t>(count);
      sort_rows(keys.get(), count, bits, rows.get(), threads);
    }
  }

  Key distance(int64_t key) const { return static_cast<Key>(key) - static_cast<Key>(lowest); }
  int64_t row(int64_t place) const { return rows == nullptr ? place : rows[place]; }
};

// Sorted keys, and which of them are the first of their kind.
struct UniqueKeys {
  SortedKeys sorted;
  Blocks blocks;
  std::vector<int64_t> firsts;  // distinct keys before each block, and all of them

  UniqueKeys(const int64_t* keys, int64_t count, int64_t threads)
      : sorted(keys, count, threads),
        blocks(blocks_of(count)),
        firsts(static_cast<size_t>(blocks.number()) + 1) {
    for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
      int64_t number = 0;
      for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) number += is_first(i);
      firsts[static_cast<size_t>(block) + 1] = number;
    });
    for (size_t block = 1; block < firsts.size(); block++) firsts[block] += firsts[block - 1];
  }

  bool is_first(int64_t i) const { return i == 0 || sorted.keys[i] != sorted.keys[i - 1]; }
  void write(int64_t* keys, int64_t* inverse, int64_t* first, int64_t* counts,
             int64_t threads) const;
};

void UniqueKeys::write(int64_t* keys, int64_t* inverse, int64_t* first, int64_t* counts,
                       int64_t threads) const {
  const int64_t total = firsts.back();
  Scratch<int64_t> starts = scratch<int64_t>(total + 1);
  starts[total] = sorted.count;
  for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
    int64_t at = firsts[static_cast<size_t>(block)] - 1;
    for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
      const int64_t row = sorted.row(i);
      if (is_first(i)) {
        at++;
        keys[at] = static_cast<int64_t>(sorted.keys[i] + static_cast<Key>(sorted.lowest));
        first[at] = row;
        starts[at] = i;
      }
      inverse[row] = at;
    }
  });
  const Blocks distinct = blocks_of(total);
  for_blocks(distinct.number(), threads, [&](int64_t block, int64_t) {
    for (int64_t i = distinct.begin(block); i < distinct.end(block); i++) {
      counts[i] = starts[i + 1] - starts[i];
    }
  });
}

// Where to look in ascending keys: about one bucket a key, by the leading bits.
class Buckets {
 public:
  explicit Buckets(const SortedKeys& sorted) : sorted_(sorted) {
    const int bits = std::min(sorted.bits, bit_length(static_cast<uint64_t>(sorted.count)));
    shift_ = sorted.bits - bits;
    starts_.reserve((size_t{1} << bits) + 1);
    int64_t at = 0;
    for (Key bucket = 0; bucket < Key{1} << bits; bucket++) {
      while (at < sorted.count && key_bucket(at) < bucket) at++;
      starts_.push_back(at);
    }
    starts_.push_back(sorted.count);
  }

  // The first row of a key, or -1.
  int64_t find(int64_t wanted) const {
    const Key key = sorted_.distance(wanted);
    if (wanted < sorted_.lowest || bit_length(key) > sorted_.bits) return -1;
    const size_t bucket = static_cast<size_t>(key >> shift_);
    const Key* at = sorted_.keys.get() + starts_[bucket];
    int64_t left = starts_[bucket + 1] - starts_[bucket];
    if (left == 0) return -1;
    while (left > 1) {  // the first one not below the key, if there is one, is among `left` from at
      const int64_t half = left / 2;
      at += at[half - 1] < key ? half : 0;
      left -= half;
    }
    return *at == key ? sorted_.row(at - sorted_.keys.get()) : -1;
  }

 private:
  Key key_bucket(int64_t i) const { return sorted_.keys[i] >> shift_; }

  const SortedKeys& sorted_;
  int shift_;
  std::vector<int64_t> starts_;
};

}  // namespace

}  // namespace pointlib

using namespace pointlib;

// Sorts keys (count,) and writes the number of distinct ones. Returns a handle for
// pl_unique_keys_write and pl_unique_keys_free.
POINTLIB_API int64_t pl_unique_keys(const int64_t* keys, int64_t count, int64_t threads,
                                    int64_t* distinct) {
  return guarded([&]() -> int64_t {
    auto unique = std::make_unique<UniqueKeys>(keys, count, threads);
    *distinct = unique->firsts.back();
    return reinterpret_cast<int64_t>(unique.release());
  });
}

// The distinct keys in ascending order, the place of each row's key among them, the smallest row
// that holds each and how many do.
POINTLIB_API int64_t pl_unique_keys_write(const void* handle, int64_t* keys, int64_t* inverse,
                                          int64_t* first, int64_t* counts, int64_t threads) {
  return guarded([&]() -> int64_t {
    static_cast<const UniqueKeys*>(handle)->write(keys, inverse, first, counts, threads);
    return 0;
  });
}

POINTLIB_API int64_t pl_unique_keys_free(const void* handle) {
  delete static_cast<const UniqueKeys*>(handle);
  return 0;
}

// rows[i] is the first row of keys (count,) that holds query[i], or -1.
POINTLIB_API int64_t pl_lookup_keys(const int64_t* query, int64_t wanted, const int64_t* keys,
                                    int64_t count, int64_t threads, int64_t* rows) {
  return guarded([&]() -> int64_t {
    if (count == 0) {
      std::fill(rows, rows + wanted, -1);
      return 0;
    }
    const SortedKeys sorted(keys, count, threads);
    const Buckets buckets(sorted);
    const Blocks blocks = blocks_of(wanted);
    for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
      for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
        rows[i] = buckets.find(query[i]);
      }
    });
    return 0;
  });
}
