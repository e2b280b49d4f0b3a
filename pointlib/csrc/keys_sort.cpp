// Sorting keys: a stable radix sort, least significant digit first, over just the bits in use.
#include <cstring>
#include <vector>

#include "keys.h"

namespace pointlib {

namespace {

// What costs a nanosecond or less an item is worth a second thread from here on.
constexpr int64_t ITEMS_PER_PART = int64_t{1} << 17;

// One pass over the digit at bits [low, low + width); false if all items share it, which then stay.
bool sort_digit(const Key* items, Key* target, int64_t count, int low, int width, int64_t parts,
                std::vector<int64_t>& places) {
  const int64_t buckets = int64_t{1} << width;
  const Key mask = static_cast<Key>(buckets - 1);
  const Blocks blocks{count, (count + parts - 1) / parts};
  places.assign(static_cast<size_t>(parts * buckets), 0);
  for_blocks(blocks.number(), parts, [&](int64_t part, int64_t) {
    int64_t* counts = places.data() + part * buckets;
    for (int64_t i = blocks.begin(part); i < blocks.end(part); i++)
      counts[items[i] >> low & mask]++;
  });
  int64_t place = 0;
  for (int64_t bucket = 0; bucket < buckets; bucket++) {
    const int64_t start = place;
    for (int64_t part = 0; part < parts; part++) {
      int64_t& entry = places[static_cast<size_t>(part * buckets + bucket)];
      place += entry;
      entry = place - entry;
    }
    if (place - start == count) return false;
  }
  for_blocks(blocks.number(), parts, [&](int64_t part, int64_t) {
    int64_t* next = places.data() + part * buckets;
    for (int64_t i = blocks.begin(part); i < blocks.end(part); i++) {
      target[next[items[i] >> low & mask]++] = items[i];
    }
  });
  return true;
}

}  // namespace

KeyOrder order_of(const Key* keys, int64_t count, int64_t threads) {
  const Blocks blocks{count, ITEMS_PER_PART};
  std::vector<KeyOrder> parts(static_cast<size_t>(blocks.number()));
  for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
    KeyOrder order;
    for (int64_t i = std::max<int64_t>(blocks.begin(block), 1); i < blocks.end(block); i++) {
      order.next(keys[i - 1], keys[i]);
    }
    parts[static_cast<size_t>(block)] = order;
  });
  KeyOrder all;
  for (const KeyOrder& part : parts) {
    all.descends |= part.descends;
    all.repeats |= part.repeats;
  }
  return all;
}

void radix_sort(Scratch<Key>& items, Scratch<Key>& spare, int64_t count, int low, int high,
                int64_t threads) {
  if (count < 2 || low >= high) return;
  const int widest = count < ROWS_PER_BLOCK ? 8 : 11;  // 2048 counters of a part fit L1
  const int passes = (high - low + widest - 1) / widest;
  const int width = (high - low + passes - 1) / passes;
  const int64_t parts = std::max<int64_t>(1, std::min(threads, count / ITEMS_PER_PART));
  std::vector<int64_t> places;
  for (; low < high; low += width) {
    const int digit = std::min(width, high - low);
    if (sort_digit(items.get(), spare.get(), count, low, digit, parts, places)) {
      items.swap(spare);
    }
  }
}

// An item is a part of the key above the row it came from. A key that leaves no room for the row is
// sorted part by part, the lowest first.
template <typename Row>
void sort_rows(Key* keys, int64_t count, int bits, Row* rows, int64_t threads) {
  const Blocks blocks = blocks_of(count);
  const int row_bits = bit_length(static_cast<uint64_t>(std::max<int64_t>(count - 1, 1)));
  const int part_bits = 64 - row_bits;
  const Key row_mask = (Key{1} << row_bits) - 1;
  Scratch<Key> items = scratch<Key>(count), spare = scratch<Key>(count);
  for (int low = 0; low == 0 || low < bits; low += part_bits) {
    for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
      for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
        const Key row = low == 0 ? static_cast<Key>(i) : static_cast<Key>(rows[i]);
        items[i] = keys[row] >> low << row_bits | row;
      }
    });
    radix_sort(items, spare, count, row_bits, row_bits + std::min(part_bits, bits - low), threads);
    for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
      for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
        rows[i] = static_cast<Row>(items[i] & row_mask);
      }
    });
  }
  if (bits > part_bits) {
    for (int64_t i = 0; i < count; i++) items[i] = keys[static_cast<Key>(rows[i])];
  }
  const int unused = bits > part_bits ? 0 : row_bits;
  for (int64_t i = 0; i < count; i++) keys[i] = items[i] >> unused;
}

template void sort_rows(Key*, int64_t, int, int32_t*, int64_t);
template void sort_rows(Key*, int64_t, int, int64_t*, int64_t);

int64_t drop_repeats(Key* keys, int64_t count, int64_t threads) {
  if (count == 0) return 0;
  const Blocks blocks{count, ITEMS_PER_PART};
  std::vector<Key> before(static_cast<size_t>(blocks.number()));
  std::vector<int64_t> left(before.size());
  before[0] = ~keys[0];
  for (int64_t block = 1; block < blocks.number(); block++) {
    before[static_cast<size_t>(block)] = keys[blocks.begin(block) - 1];
  }
  for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
    Key last = before[static_cast<size_t>(block)];
    Key* to = keys + blocks.begin(block);
    for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
      const Key key = keys[i];
      *to = key;
      to += key != last;
      last = key;
    }
    left[static_cast<size_t>(block)] = to - (keys + blocks.begin(block));
  });
  int64_t total = left[0];
  for (int64_t block = 1; block < blocks.number(); block++) {
    const int64_t more = left[static_cast<size_t>(block)];
    std::memmove(keys + total, keys + blocks.begin(block), static_cast<size_t>(more) * sizeof(Key));
    total += more;
  }
  return total;
}

int64_t sort_distinct(Scratch<Key>& keys, int64_t count, int bits, int64_t threads) {
  count = drop_repeats(keys.get(), count, threads);
  if (!order_of(keys.get(), count, threads).descends) return count;
  Scratch<Key> spare = scratch<Key>(count);
  radix_sort(keys, spare, count, 0, bits, threads);
  return drop_repeats(keys.get(), count, threads);
}

}  // namespace pointlib
