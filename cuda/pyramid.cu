// The maps of all levels of a network at once, without the host: the levels' voxels stand in one
// array, each level in as many rows as it may have at most, and how many it has is known on the
// device only.
//
// The level of a voxel is the highest field of its key, so one sort orders all levels. A row of the
// maps has a mask of its taps and a list of neighbours, as in row_map.cu.
#include "kernel_map.cuh"

namespace pointlib {

constexpr int LEVEL_SHIFT = 60;
constexpr int64_t NO_VOXEL = 0x7fffffffffffffff;

enum Status : int { REPEATED = 1, TOO_WIDE = 2, LEVEL_FULL = 4, MAPS_FULL = 8 };

// Of each level the first of its rows and its stride (x, y, z) in voxels of level 0; then the end.
struct Levels {
  const int64_t* table;
  int64_t number;

  __device__ int64_t begin(int64_t level) const { return __ldg(table + 4 * level); }
  __device__ int64_t capacity(int64_t level) const { return begin(level + 1) - begin(level); }
  __device__ int64_t stride(int64_t level, int axis) const {
    return __ldg(table + 4 * level + 1 + axis);
  }
  // Blocks of threads in a level, and where this one's counts stand: (taps, blocks) a level.
  __device__ int64_t blocks(int64_t level) const { return capacity(level) / blockDim.x; }
  __device__ int64_t counts_of(int64_t level, int64_t volume) const {
    return begin(level) / blockDim.x * (volume - 1) + blockIdx.x;
  }
  __device__ int64_t of(int64_t row) const {
    int64_t level = 0;
    while (row >= begin(level + 1)) level++;
    return level;
  }
  __device__ Box box(int64_t level, const uint64_t* bounds) const {
    return floor_box(bounds, {stride(level, 0), stride(level, 1), stride(level, 2)});
  }
};

// Keys (levels, rows) of what each of coords' first *live rows becomes on every level, which is the
// blocks' y.
__global__ void pack_levels(const int4* __restrict__ coords, int64_t rows,
                            const int64_t* __restrict__ live, const uint64_t* __restrict__ bounds,
                            const int64_t* __restrict__ table, int64_t number,
                            int64_t* __restrict__ keys, int32_t* __restrict__ status) {
  const Levels levels = {table, number};
  const int64_t row = global_thread(), level = blockIdx.y;
  if (row >= rows) return;
  int64_t key = NO_VOXEL;
  if (row < *live) {
    const Layout layout(levels.box(level, bounds));
    const int4 voxel = coords[row];
    key = layout.pack(voxel.x, floor_divide(voxel.y, levels.stride(level, 0)),
                      floor_divide(voxel.z, levels.stride(level, 1)),
                      floor_divide(voxel.w, levels.stride(level, 2)));
    key |= level << LEVEL_SHIFT;
    if (row == 0 && layout.bits > LEVEL_SHIFT) atomicOr(status, TOO_WIDE);
    if (row == 0 && *live > rows) atomicOr(status, LEVEL_FULL);
  }
  keys[level * rows + row] = key;
}

// Of sorted keys and the number of distinct ones up to each: the distinct ones before each level
// (firsts), those in it (counts), at most its capacity, and its bounds (levels, 9).
__global__ void count_levels(const int64_t* __restrict__ keys, const int32_t* __restrict__ places,
                             int64_t count, const int64_t* __restrict__ table, int64_t number,
                             const uint64_t* __restrict__ bounds, int64_t* __restrict__ firsts,
                             int64_t* __restrict__ counts, uint64_t* __restrict__ level_bounds,
                             int32_t* __restrict__ status) {
  const Levels levels = {table, number};
  const int64_t level = global_thread();
  if (level >= number) return;
  const int64_t begin = lower_bound(keys, count, level << LEVEL_SHIFT);
  const int64_t end = lower_bound(keys, count, (level + 1) << LEVEL_SHIFT);
  firsts[level] = begin == 0 ? 0 : places[begin - 1];
  const int64_t found = (end == 0 ? 0 : places[end - 1]) - firsts[level];
  if (found > levels.capacity(level)) atomicOr(status, LEVEL_FULL);
  counts[level] = min(found, levels.capacity(level));
  levels.box(level, bounds).store(level_bounds + level * (BOUNDS + 1));
  level_bounds[level * (BOUNDS + 1) + REPEATS] = 0;
}

// The distinct keys of each level, without the level; their voxels, but on level 0, where `order`
// gets the row of each key.
__global__ void write_levels(const int64_t* __restrict__ keys, const int64_t* __restrict__ rows,
                             const int32_t* __restrict__ places, int64_t count,
                             const int64_t* __restrict__ firsts,
                             const uint64_t* __restrict__ bounds, const int64_t* __restrict__ table,
                             int64_t number, int64_t* __restrict__ site_keys,
                             int4* __restrict__ coords, int32_t* __restrict__ order,
                             int32_t* __restrict__ status) {
  const Levels levels = {table, number};
  const int64_t i = global_thread();
  if (i >= count || keys[i] == NO_VOXEL) return;
  const int64_t level = keys[i] >> LEVEL_SHIFT;
  if (level < 0 || level >= number) return;  // too wide, and told
  if (!is_first(keys, i)) {
    if (level == 0) atomicOr(status, REPEATED);
    return;
  }
  const int64_t place = places[i] - 1 - firsts[level];
  if (place >= levels.capacity(level)) return;
  const int64_t key = keys[i] & ((int64_t{1} << LEVEL_SHIFT) - 1);
  site_keys[levels.begin(level) + place] = key;
  if (level == 0) {
    order[place] = static_cast<int32_t>(rows[i]);
    return;
  }
  int64_t at[4];
  Layout(levels.box(level, bounds)).unpack(key, at);
  coords[levels.begin(level) + place] = make_int4(static_cast<int>(at[0]), static_cast<int>(at[1]),
                                                  static_cast<int>(at[2]), static_cast<int>(at[3]));
}

// As search_columns, for the outputs of all levels; inputs are `step` levels finer, and there is no
// dilation. A level starts with a block. counts may be null; those of a level stand together.
__global__ void __launch_bounds__(256)
    search_levels(const int64_t* __restrict__ site_keys, const int64_t* __restrict__ live,
                  const uint64_t* __restrict__ bounds, const int64_t* __restrict__ table,
                  int64_t number, int64_t step, int64_t size_x, int64_t size_y, int64_t size_z,
                  int64_t padding_x, int64_t padding_y, int64_t padding_z, int64_t symmetric,
                  int32_t* __restrict__ starts, uint8_t* __restrict__ present,
                  int64_t* __restrict__ counts) {
  const Levels levels = {table, number};
  const int64_t row = global_thread(), rows = levels.begin(number);
  const int64_t size[3] = {size_x, size_y, size_z};
  const Column column(size, true, symmetric, blockIdx.y);
  const int64_t level = levels.of(row), source = level - step;
  const int64_t behind = source < 0 ? 0 : live[level] - (row - levels.begin(level));
  Found found = {0, 0};
  if (behind > 0) {
    int64_t at[4];
    Layout(levels.box(level, bounds)).unpack(site_keys[row], at);
    const int64_t x = levels.stride(level, 0) / levels.stride(source, 0) * at[1] - padding_x;
    const int64_t y = levels.stride(level, 1) / levels.stride(source, 1) * at[2] - padding_y;
    const int64_t z = levels.stride(level, 2) / levels.stride(source, 2) * at[3] - padding_z;
    found = find_column(site_keys + levels.begin(source), live[source], levels.box(source, bounds),
                        at[0], x + column.x, y + column.y, z, column.depth);
  }
  if (found.bits != 0) starts[blockIdx.y * rows + row] = static_cast<int32_t>(found.start);
  present[blockIdx.y * rows + row] = static_cast<uint8_t>(found.bits);
  if (counts == nullptr) return;
  if (row == 0 && blockIdx.y == 0) counts[0] = 0;
  const int64_t outputs = min(max(behind + threadIdx.x, int64_t{0}), int64_t{blockDim.x});
  count_pairs(column, found.bits, source < 0 ? 0 : outputs, symmetric,
              counts + 1 + levels.counts_of(level, column.volume), levels.blocks(level));
}

// As write_pairs, for the outputs of all levels.
__global__ void write_level_pairs(const int64_t* __restrict__ table, int64_t number,
                                  const int64_t* __restrict__ live,
                                  const int32_t* __restrict__ order,
                                  const int32_t* __restrict__ starts,
                                  const uint8_t* __restrict__ present, int64_t step, int64_t size_x,
                                  int64_t size_y, int64_t size_z, int64_t symmetric,
                                  const int64_t* __restrict__ places,
                                  int32_t* __restrict__ in_index, int32_t* __restrict__ out_index) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Levels levels = {table, number};
  const int64_t row = global_thread(), at = blockIdx.y * levels.begin(number) + row;
  const int64_t size[3] = {size_x, size_y, size_z};
  const Column column(size, true, symmetric, blockIdx.y);
  const int64_t level = levels.of(row), source = level - step, out = row - levels.begin(level);
  const bool is_output = source >= 0 && out < live[level];
  const uint32_t bits = present[at];
  const Found found = {bits == 0 ? 0 : starts[at], bits};
  place_pairs(column, found, out, is_output, source == 0 ? order : nullptr,
              level == 0 ? order : nullptr, symmetric,
              places + levels.counts_of(level, column.volume), levels.blocks(level),
              reinterpret_cast<int32_t*>(shared_memory), in_index, out_index);
}

// What is done with each tap that a row has.
struct Marks {
  int64_t words;
  uint32_t* mask;

  __device__ void take(int64_t row, int64_t tap, int64_t) const {
    atomicOr(mask + row * words + tap / 32, 1u << (tap % 32));
  }
};

struct Places {
  int64_t words;
  const uint32_t* mask;
  const int32_t* row_ptr;
  int64_t capacity;
  int32_t* neighbours;
  int32_t* status;

  __device__ void take(int64_t row, int64_t tap, int64_t neighbour) const {
    const uint32_t* own = mask + row * words;
    int64_t place = row_ptr[row];
    for (int64_t word = 0; word < tap / 32; word++) place += __popc(own[word]);
    place += __popc(own[tap / 32] & ((1u << (tap % 32)) - 1));
    if (place < capacity) {
      neighbours[place] = static_cast<int32_t>(neighbour);
    } else {
      atomicOr(status, MAPS_FULL);
    }
  }
};

// Visits all that search_levels found; reversed, the inputs are the rows and the outputs their
// neighbours. Neighbours count from the begin of their level.
template <class Visitor>
__device__ void visit(const Levels& levels, const int64_t* counts, const int32_t* order,
                      const int32_t* starts, const uint8_t* present, int64_t step,
                      const int64_t (&size)[3], bool symmetric, bool reversed,
                      const Visitor& visitor) {
  const int64_t row = global_thread(), rows = levels.begin(levels.number);
  if (row >= rows) return;
  const Column column(size, true, symmetric, blockIdx.y);
  const int64_t level = levels.of(row), source = level - step;
  const int64_t out_begin = levels.begin(level);
  if (source < 0 || row - out_begin >= counts[level]) return;
  const int64_t in_begin = levels.begin(source);
  const int64_t out = level == 0 ? order[row] : row - out_begin;
  if (column.is_central) visitor.take(out_begin + out, column.volume / 2, out);
  const uint32_t bits = present[blockIdx.y * rows + row];
  int64_t place = bits == 0 ? 0 : starts[blockIdx.y * rows + row];
  for (int64_t i = 0; i < column.depth; i++) {
    if ((bits >> i & 1) == 0) continue;
    const int64_t in = source == 0 ? order[place] : place;
    place++;
    if (reversed) {
      visitor.take(in_begin + in, column.tap(i), out);
    } else {
      visitor.take(out_begin + out, column.tap(i), in);
    }
    if (symmetric) visitor.take(in_begin + in, column.mirrored(i), out);
  }
}

__global__ void mark_levels(const int64_t* __restrict__ table, int64_t number,
                            const int64_t* __restrict__ counts, const int32_t* __restrict__ order,
                            const int32_t* __restrict__ starts, const uint8_t* __restrict__ present,
                            int64_t step, int64_t size_x, int64_t size_y, int64_t size_z,
                            int64_t symmetric, int64_t reversed, int64_t words,
                            uint32_t* __restrict__ mask) {
  visit({table, number}, counts, order, starts, present, step, {size_x, size_y, size_z}, symmetric,
        reversed, Marks{words, mask});
}

__global__ void place_levels(const int64_t* __restrict__ table, int64_t number,
                             const int64_t* __restrict__ counts, const int32_t* __restrict__ order,
                             const int32_t* __restrict__ starts,
                             const uint8_t* __restrict__ present, int64_t step, int64_t size_x,
                             int64_t size_y, int64_t size_z, int64_t symmetric, int64_t reversed,
                             int64_t words, const uint32_t* __restrict__ mask,
                             const int32_t* __restrict__ row_ptr, int64_t capacity,
                             int32_t* __restrict__ neighbours, int32_t* __restrict__ status) {
  visit({table, number}, counts, order, starts, present, step, {size_x, size_y, size_z}, symmetric,
        reversed, Places{words, mask, row_ptr, capacity, neighbours, status});
}

// What the rows of several maps, each of all levels, are sorted by: map, level, split, and the Gray
// rank of the taps of that split, largest first. The blocks' y is the split. bits (maps, volume):
// the bit of a split's rank that a tap sets; ranks are `width` bits wide. Keys of 32 bits use all.
template <class Key>
__global__ void rank_levels(const int64_t* __restrict__ table, int64_t number,
                            const uint32_t* __restrict__ mask, int64_t maps, int64_t words,
                            const int64_t* __restrict__ bits, int64_t volume, int64_t splits,
                            int64_t width, Key* __restrict__ keys) {
  const Levels levels = {table, number};
  const int64_t row = global_thread(), rows = levels.begin(number), split = blockIdx.y;
  if (row >= maps * rows) return;
  const int64_t map = row / rows, level = levels.of(row % rows);
  const int64_t* own = bits + map * volume;
  uint64_t rank = 0;
  for (int64_t word = 0; word < words; word++) {
    for (uint32_t left = mask[row * words + word]; left != 0; left &= left - 1) {
      const int64_t place = __ldg(own + word * 32 + __ffs(static_cast<int>(left)) - 1);
      if (place / 64 == split) rank |= uint64_t{1} << (place % 64);
    }
  }
  for (int step = 32; step > 0; step /= 2) rank ^= rank >> step;
  const int64_t group = (map * number + level) * splits + split;
  const uint64_t largest = (uint64_t{1} << width) - 1;
  const uint64_t key = (static_cast<uint64_t>(group) << width) + (largest - rank);
  constexpr uint64_t sign = sizeof(Key) == 4 ? uint64_t{1} << 31 : 0;
  keys[split * maps * rows + row] = static_cast<Key>(key ^ sign);
}

// Rows as they were sorted, counted from the begin of their level.
__global__ void take_level_order(const int64_t* __restrict__ table, int64_t number,
                                 const int64_t* __restrict__ sorted, int64_t count,
                                 int32_t* __restrict__ order) {
  const Levels levels = {table, number};
  const int64_t i = global_thread();
  if (i >= count) return;
  const int64_t row = sorted[i] % levels.begin(number);
  order[i] = static_cast<int32_t>(row - levels.begin(levels.of(row)));
}

}  // namespace pointlib
