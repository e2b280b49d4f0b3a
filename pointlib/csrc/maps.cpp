// Kernel maps: sort the keys of inputs and outputs once, then merge them column by column.
//
// The taps of one (x, y) column of a kernel differ only in z, the lowest field of a key. So one
// pointer into the sorted inputs serves the column: it moves forward with the sorted outputs, and
// the inputs from it on are those the column's taps read. Blocks of outputs are searched
// independently; a second pass puts their pairs where they belong, tap by tap.
#include "maps.h"

#include <cstring>
#include <vector>

#include "engine.h"
#include "maps_merge.h"

namespace pointlib {

namespace {

constexpr int64_t OUTPUTS_PER_BLOCK = 1024;
constexpr int64_t CHUNK = int64_t{1} << 18;  // int32 of an arena's chunk: 1 MiB

// Memory of one worker for the pairs it finds.
struct Arena {
  std::vector<Scratch<int32_t>> chunks;
  int32_t* next = nullptr;
  int64_t left = 0;

  int32_t* reserve(int64_t size) {
    if (left < size) {
      left = std::max(size, CHUNK);
      chunks.push_back(scratch<int32_t>(left));
      next = chunks.back().get();
    }
    return next;
  }
  void keep(int64_t size) {
    next += size;
    left -= size;
  }
};

struct Worker {
  Arena arena;
  Meeting meetings[LANES][OUTPUTS_PER_BLOCK + 1];
};

// Ascending keys, and the row of each; no rows where row i has key i.
struct SortedSites {
  int64_t count = 0;
  Scratch<Key> keys;
  Scratch<int32_t> rows;
  bool repeats = false;

  void pack_and_sort(const int32_t* coords, int64_t number, const Packing& key_of,
                     const Layout& layout, int64_t threads) {
    count = number;
    keys = scratch<Key>(count + 1);
    const Blocks blocks = blocks_of(count);
    for_blocks(blocks.number(), threads, [&](int64_t block, int64_t) {
      for (int64_t i = blocks.begin(block); i < blocks.end(block); i++) {
        const int32_t* at = coords + 4 * i;
        keys[i] = key_of(at[0], at[1], at[2], at[3]);
      }
    });
    KeyOrder order = order_of(keys.get(), count, threads);
    if (order.descends) {
      rows = scratch<int32_t>(count);
      sort_rows(keys.get(), count, layout.bits, rows.get(), threads);
      order = order_of(keys.get(), count, threads);
    }
    repeats = order.repeats;
  }
};

// Taps that one pointer serves: neighbours in z, at keys from that of the output + offset on.
struct Column {
  Key offset;
  int64_t first_tap, tap_step, depth;
};

std::vector<Column> columns_of(const Geometry& geometry, const Layout& layout, bool symmetric) {
  const int64_t* size = geometry.kernel_size;
  const bool x_fastest = geometry.volume() % 2 == 1;
  const int64_t centre = size[0] * size[1] / 2;
  std::vector<Column> columns;
  for (int64_t x = 0; x < size[0]; x++) {
    for (int64_t y = 0; y < size[1]; y++) {
      const int64_t column = x * size[1] + y;
      int64_t depth = size[2];
      if (symmetric && column >= centre) depth = column == centre ? size[2] / 2 : 0;
      const int64_t first_tap = x_fastest ? x + size[0] * y : size[2] * column;
      const int64_t tap_step = x_fastest ? size[0] * size[1] : 1;
      const Key offset = (static_cast<Key>(x * geometry.dilation[0]) << layout.shift[1]) +
                         (static_cast<Key>(y * geometry.dilation[1]) << layout.shift[2]);
      // Taps that are not neighbours get a pointer each.
      const int64_t together = geometry.dilation[2] == 1 ? depth : 1;
      for (int64_t z = 0; z < depth; z += together) {
        columns.push_back({offset + static_cast<Key>(z * geometry.dilation[2]),
                           first_tap + z * tap_step, tap_step, together});
      }
    }
  }
  return columns;
}

// rows[found[i]], or found[i] itself.
void copy_rows(const int32_t* found, int64_t count, const int32_t* rows, int32_t* target) {
  if (count == 0) return;
  if (rows == nullptr) {
    std::memcpy(target, found, static_cast<size_t>(count) * sizeof(int32_t));
  } else {
    for (int64_t i = 0; i < count; i++) target[i] = rows[found[i]];
  }
}

class KernelMap {
 public:
  bool search(const int32_t* coords, int64_t num_in, const int32_t* out_coords, int64_t num_out,
              const Geometry& geometry, bool symmetric, int64_t threads, Report* report);
  void count_pairs(int64_t* offset_ptr);
  void write_pairs(int32_t* in_index, int32_t* out_index, int64_t threads) const;

 private:
  void search_block(int64_t block, Worker& worker);
  void keep_pairs(int64_t block, size_t c, Lane* lanes, const Lane* end, Arena& arena);

  SortedSites inputs_, own_outputs_;
  const SortedSites* outputs_ = nullptr;
  Key out_shift_ = 0;  // from the key of an output to that of its tap 0
  Blocks blocks_{0, OUTPUTS_PER_BLOCK};
  int64_t volume_ = 0;
  bool symmetric_ = false;
  std::vector<Column> columns_;
  std::vector<Worker> workers_;
  std::vector<const int32_t*> found_;  // (blocks, columns): a tap's inputs, its outputs, next tap
  std::vector<int64_t> counts_;        // (blocks, taps) pairs, of searched taps
  std::vector<int64_t> places_;        // (blocks, taps) where they go
};

bool KernelMap::search(const int32_t* coords, int64_t num_in, const int32_t* out_coords,
                       int64_t num_out, const Geometry& geometry, bool symmetric, int64_t threads,
                       Report* report) {
  volume_ = geometry.volume();
  symmetric_ = symmetric;
  blocks_.count = num_out;
  const bool same = coords == out_coords && num_in == num_out;
  Box box = bounds(coords, num_in, threads);
  Box reached = same ? box : bounds(out_coords, num_out, threads);
  for (int axis = 0; axis < 3; axis++) {
    const int64_t scale = geometry.stride[axis], pad = geometry.padding[axis];
    const int64_t reach = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1);
    reached.low[axis + 1] = reached.low[axis + 1] * scale - pad;
    reached.high[axis + 1] = reached.high[axis + 1] * scale - pad + reach;
  }
  box.cover(reached);
  const Layout layout(box);
  if (!report->accept(box, layout)) return false;

  const int64_t unit[3] = {1, 1, 1}, none[3] = {0, 0, 0};
  const int64_t shift[3] = {-geometry.padding[0], -geometry.padding[1], -geometry.padding[2]};
  const Packing in_key(layout, unit, none), out_key(layout, geometry.stride, shift);
  inputs_.pack_and_sort(coords, num_in, in_key, layout, threads);
  inputs_.keys[num_in] = PAST_ALL_KEYS;
  outputs_ = &inputs_;
  out_shift_ = out_key.start - in_key.start;
  if (!same || !std::equal(unit, unit + 3, geometry.stride)) {
    own_outputs_.pack_and_sort(out_coords, num_out, out_key, layout, threads);
    outputs_ = &own_outputs_;
    out_shift_ = 0;
  }
  if (inputs_.repeats || outputs_->repeats) {
    report->status = REPEATED;
    return false;
  }
  columns_ = columns_of(geometry, layout, symmetric);
  found_.resize(static_cast<size_t>(blocks_.number()) * columns_.size());
  counts_.resize(static_cast<size_t>(blocks_.number() * volume_));
  workers_.resize(static_cast<size_t>(std::min(threads, blocks_.number())));
  for_blocks(blocks_.number(), threads, [&](int64_t block, int64_t worker) {
    search_block(block, workers_[static_cast<size_t>(worker)]);
  });
  return true;
}

// Columns are merged side by side, and so are the parts of a block where they are too few.
void KernelMap::search_block(int64_t block, Worker& worker) {
  const int64_t begin = blocks_.begin(block), end = blocks_.end(block);
  size_t first = 0;
  while (first < columns_.size()) {
    size_t group = LANES;
    while (first + group > columns_.size() ||
           columns_[first + group - 1].depth != columns_[first].depth) {
      group /= 2;
    }
    const int64_t parts = LANES / static_cast<int64_t>(group);
    const Blocks cut{end - begin, (end - begin + parts - 1) / parts};
    Lane lanes[LANES];
    int number = 0;
    for (size_t c = first; c < first + group; c++) {
      for (int64_t part = 0; part < cut.number(); part++, number++) {
        lanes[number] = {columns_[c].offset + out_shift_, begin + cut.begin(part),
                         begin + cut.end(part), worker.meetings[number], 0};
      }
    }
    merge(inputs_.keys.get(), inputs_.count, outputs_->keys.get(),
          static_cast<Key>(columns_[first].depth), lanes, number);
    for (size_t i = 0; i < group; i++) {
      Lane* own = lanes + static_cast<int64_t>(i) * cut.number();
      keep_pairs(block, first + i, own, own + cut.number(), worker.arena);
    }
    first += group;
  }
  if (symmetric_) counts_[static_cast<size_t>(block * volume_ + volume_ / 2)] = end - begin;
}

// Takes what the lanes of a column met apart by tap.
void KernelMap::keep_pairs(int64_t block, size_t c, Lane* lanes, const Lane* end, Arena& arena) {
  const Key* in_keys = inputs_.keys.get();
  const Key* out_keys = outputs_->keys.get();
  const Column& column = columns_[c];
  int64_t* tap_counts = counts_.data() + block * volume_;
  int64_t room = 1;  // one more than there can be, as each is written before it is known to be one
  for (const Lane* lane = lanes; lane < end; lane++) room += lane->count;
  int32_t* found = arena.reserve(2 * room * column.depth);
  found_[static_cast<size_t>(block) * columns_.size() + c] = found;
  for (int64_t z = 0; z < column.depth; z++) {
    int64_t count = 0;
    for (Lane* lane = lanes; lane < end; lane++) {
      const Key offset = lane->offset + static_cast<Key>(z);
      for (int64_t i = 0; i < lane->count; i++) {
        Meeting& meeting = lane->found[i];
        const bool hit = in_keys[meeting.in] == out_keys[meeting.out] + offset;
        found[count] = meeting.in;
        found[room + count] = meeting.out;
        count += hit;
        meeting.in += hit;
      }
    }
    std::memmove(found + count, found + room, static_cast<size_t>(count) * sizeof(int32_t));
    found += 2 * count;
    arena.keep(2 * count);
    const int64_t tap = column.first_tap + z * column.tap_step;
    tap_counts[tap] = count;
    if (symmetric_) tap_counts[volume_ - 1 - tap] = count;
  }
}

// Numbers the pairs: those of a tap follow those of the tap before, block after block.
void KernelMap::count_pairs(int64_t* offset_ptr) {
  places_.resize(counts_.size());
  int64_t place = 0;
  for (int64_t tap = 0; tap < volume_; tap++) {
    offset_ptr[tap] = place;
    for (size_t at = static_cast<size_t>(tap); at < counts_.size(); at += volume_) {
      places_[at] = place;
      place += counts_[at];
    }
  }
  offset_ptr[volume_] = place;
}

void KernelMap::write_pairs(int32_t* in_index, int32_t* out_index, int64_t threads) const {
  const int32_t* in_rows = inputs_.rows.get();
  const int32_t* out_rows = outputs_->rows.get();
  for_blocks(blocks_.number(), threads, [&](int64_t block, int64_t) {
    const int64_t* counts = counts_.data() + block * volume_;
    const int64_t* places = places_.data() + block * volume_;
    for (size_t c = 0; c < columns_.size(); c++) {
      const Column& column = columns_[c];
      const int32_t* found = found_[static_cast<size_t>(block) * columns_.size() + c];
      for (int64_t z = 0; z < column.depth; z++) {
        const int64_t tap = column.first_tap + z * column.tap_step, mirror = volume_ - 1 - tap;
        const int64_t count = counts[tap];
        copy_rows(found, count, in_rows, in_index + places[tap]);
        copy_rows(found + count, count, out_rows, out_index + places[tap]);
        if (symmetric_) {
          copy_rows(found + count, count, out_rows, in_index + places[mirror]);
          copy_rows(found, count, in_rows, out_index + places[mirror]);
        }
        found += 2 * count;
      }
    }
    if (symmetric_) {
      const int64_t place = places[volume_ / 2], begin = blocks_.begin(block);
      for (int64_t i = 0; i < blocks_.end(block) - begin; i++) {
        const int64_t row = begin + i;
        const int32_t number = in_rows == nullptr ? static_cast<int32_t>(row) : in_rows[row];
        in_index[place + i] = out_index[place + i] = number;
      }
    }
  });
}

}  // namespace

}  // namespace pointlib

using namespace pointlib;

// Searches the pairs of coords (num_in, 4) and out_coords (num_out, 4), both not empty. Returns a
// handle for pl_kernel_map_write and pl_kernel_map_free and writes offset_ptr (taps + 1,); or
// returns 0 and the report tells why there is no map. `symmetric`: out_coords are coords, and tap k
// mirrors tap taps - 1 - k.
POINTLIB_API int64_t pl_kernel_map(const int32_t* coords, int64_t num_in, const int32_t* out_coords,
                                   int64_t num_out, const Geometry* geometry, int64_t symmetric,
                                   int64_t threads, int64_t* offset_ptr, Report* report) {
  return guarded([&]() -> int64_t {
    geometry->check();
    if (num_in > INT32_MAX || num_out > INT32_MAX) {
      return fail("coords must have at most 2^31 - 1 rows: a map holds rows as int32");
    }
    if (symmetric && (geometry->volume() % 2 == 0 || coords != out_coords || num_in != num_out)) {
      return fail("a symmetric map must have a central tap, and its inputs as outputs");
    }
    auto map = std::make_unique<KernelMap>();
    if (!map->search(coords, num_in, out_coords, num_out, *geometry, symmetric != 0, threads,
                     report)) {
      return 0;
    }
    map->count_pairs(offset_ptr);
    return reinterpret_cast<int64_t>(map.release());
  });
}

// Writes the pairs, offset_ptr[taps] of them.
POINTLIB_API int64_t pl_kernel_map_write(const void* map, int32_t* in_index, int32_t* out_index,
                                         int64_t threads) {
  return guarded([&]() -> int64_t {
    static_cast<const KernelMap*>(map)->write_pairs(in_index, out_index, threads);
    return 0;
  });
}

POINTLIB_API int64_t pl_kernel_map_free(const void* map) {
  delete static_cast<const KernelMap*>(map);
  return 0;
}
