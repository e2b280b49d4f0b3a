// int8 sparse convolution: packs weights, walks tiles of output rows and calls the int8 kernels of
// the chosen instruction set.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"
#include "kernels.h"
#include "kernels_i8.h"
#include "memory.h"

namespace pointlib {

// setup.py defines POINTLIB_WITH_<SET> for every set that the compiler could build.
#define POINTLIB_DECLARE(set)    \
  namespace set {                \
  const KernelsInt8& table_i8(); \
  }
POINTLIB_DECLARE(generic)
#ifdef POINTLIB_WITH_AVX2
POINTLIB_DECLARE(avx2)
#endif
#ifdef POINTLIB_WITH_AVX512
POINTLIB_DECLARE(avx512)
#endif
#ifdef POINTLIB_WITH_AVX512_VNNI
POINTLIB_DECLARE(avx512_vnni)
#endif
#ifdef POINTLIB_WITH_AVX512_BF16
POINTLIB_DECLARE(avx512_bf16)
#endif
#ifdef POINTLIB_WITH_AMX
POINTLIB_DECLARE(amx)
#endif

const KernelsInt8& kernels_i8() {
  [[maybe_unused]] const char* set = kernels().name;
#define POINTLIB_RETURN(name) \
  if (std::strcmp(set, #name) == 0) return name::table_i8()
#ifdef POINTLIB_WITH_AVX2
  POINTLIB_RETURN(avx2);
#endif
#ifdef POINTLIB_WITH_AVX512
  POINTLIB_RETURN(avx512);
#endif
#ifdef POINTLIB_WITH_AVX512_VNNI
  POINTLIB_RETURN(avx512_vnni);
#endif
#ifdef POINTLIB_WITH_AVX512_BF16
  POINTLIB_RETURN(avx512_bf16);
#endif
#ifdef POINTLIB_WITH_AMX
  POINTLIB_RETURN(amx);
#endif
  return generic::table_i8();
}

namespace {

// What stands before the packed taps.
struct alignas(64) PackedHeader {
  char magic[8];
  int64_t layout, taps, c_in, c_out;
  char zeros[24];  // no byte is left to chance: the same weight packs to the same bytes
};
constexpr char MAGIC[8] = {'p', 'l', 'i', 'n', 't', '8', 0, 1};
static_assert(sizeof(PackedHeader) == 64, "taps begin on a cache line");

int64_t packed_bytes(int64_t taps, int64_t c_in, int64_t c_out) {
  return sizeof(PackedHeader) + taps * kernels_i8().packed_bytes(c_in, c_out);
}

// Pairs whose output rows ascend inside every tap, cut into tiles: those of (tap, tile) are
// [cuts[tap * (tiles + 1) + tile], cuts[tap * (tiles + 1) + tile + 1]).
struct TiledPairs {
  const int32_t *in, *out;
  int64_t tile_rows, tiles;
  std::vector<int64_t> cuts;
  Scratch<int32_t> storage;

  TiledPairs(const ConvolutionInt8& c, int64_t rows)
      : in(c.in_index),
        out(c.out_index),
        tile_rows(rows),
        tiles((c.num_out + rows - 1) / rows),
        cuts(c.taps * (tiles + 1)) {
    search(c);
  }

  // A row comes at most once in a tap, so a tile's pairs end at most tile_rows further on. Where
  // rows do not ascend, the cuts mean nothing; convolve_tiles notices.
  void search(const ConvolutionInt8& c) {
#pragma omp parallel for num_threads(c.threads) schedule(dynamic) if (c.threads > 1)
    for (int64_t tap = 0; tap < c.taps; ++tap) {
      int64_t* cut = cuts.data() + tap * (tiles + 1);
      const int64_t end = c.offset_ptr[tap + 1];
      cut[0] = c.offset_ptr[tap];
      for (int64_t tile = 1; tile < tiles; ++tile) {
        const int64_t from = cut[tile - 1], most = std::min(end, from + tile_rows);
        cut[tile] = std::lower_bound(out + from, out + most, tile * tile_rows) - out;
      }
      cut[tiles] = end;
    }
  }

  // Sorts a copy of the pairs by output row, stable.
  void sort(const ConvolutionInt8& c) {
    storage = scratch<int32_t>(2 * c.num_pairs);
    int32_t *sorted_in = storage.get(), *sorted_out = sorted_in + c.num_pairs;
    std::atomic<bool> outside{false};
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
      std::vector<int32_t> source(c.num_out);  // input row of each output row, or -1
#pragma omp for schedule(dynamic)
      for (int64_t tap = 0; tap < c.taps; ++tap) {
        std::fill(source.begin(), source.end(), -1);
        bool wrong = false;
        for (int64_t p = c.offset_ptr[tap]; p < c.offset_ptr[tap + 1]; ++p) {
          const int64_t row = c.out_index[p];
          wrong |= row < 0 || row >= c.num_out || source[row] != -1 || c.in_index[p] < 0;
          if (!wrong) source[row] = c.in_index[p];
        }
        if (wrong) {
          outside = true;
          continue;
        }
        int64_t p = c.offset_ptr[tap];
        for (int64_t row = 0; row < c.num_out; ++row)
          if (source[row] != -1) {
            sorted_out[p] = static_cast<int32_t>(row);
            sorted_in[p++] = source[row];
          }
      }
    }
    if (outside)
      throw std::runtime_error(
          "the kernel map's rows must lie in [0, num_in) and [0, num_out), and no output row may "
          "come twice within a tap");
    in = sorted_in;
    out = sorted_out;
    search(c);
  }
};

enum Outcome { DONE, UNORDERED, OUTSIDE };

// One thread's share of memory.
struct Workspace {
  int32_t *sums, *excess;
  void* scratch;
};

// Checks the pairs of a tap in a tile, and adds up how much their sums are in excess.
Outcome visit(const PairsInt8& pairs, int64_t rows, int64_t num_in, const int32_t* row_sums,
              int32_t* excess) {
  bool outside = false, unordered = false;
  int64_t previous = -1;
  for (int64_t p = 0; p < pairs.count; ++p) {
    const int64_t row = pairs.out[p] - pairs.out_base;
    unordered |= row <= previous;
    previous = row;
    outside |= static_cast<uint64_t>(pairs.in[p]) >= static_cast<uint64_t>(num_in);
  }
  if (unordered || previous >= rows) return UNORDERED;
  if (outside) return OUTSIDE;
  if (row_sums)
    for (int64_t p = 0; p < pairs.count; ++p)
      excess[pairs.out[p] - pairs.out_base] += 128 * row_sums[pairs.in[p]];
  return DONE;
}

Outcome convolve_tile(const ConvolutionInt8& c, const KernelsInt8& k, const TiledPairs& tiled,
                      const EpilogueInt8& epilogue, int64_t tile, const int32_t* row_sums,
                      const Workspace& work) {
  const int64_t width = (c.c_out + k.width - 1) / k.width * k.width;
  const int64_t first = tile * tiled.tile_rows, rows = std::min(tiled.tile_rows, c.num_out - first);
  const int64_t tap_bytes = k.packed_bytes(c.channels[0] + c.channels[1], c.c_out);
  const char* packed = static_cast<const char*>(c.packed) + sizeof(PackedHeader);
  std::fill_n(work.sums, rows * width, 0);
  if (k.excess) std::fill_n(work.excess, rows, 0);
  const int64_t taps = c.channels[0] + c.channels[1] ? c.taps : 0;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t* cut = tiled.cuts.data() + tap * (tiled.tiles + 1) + tile;
    if (cut[0] == cut[1]) continue;
    const PairsInt8 pairs = {tiled.in + cut[0], tiled.out + cut[0], cut[1] - cut[0], first};
    const Outcome outcome = visit(pairs, rows, c.num_in, row_sums, work.excess);
    if (outcome != DONE) return outcome;
    const RowsInt8 sources = {c.feats[0], c.feats[1], c.channels[0], c.channels[1]};
    k.multiply(sources, pairs, packed + tap * tap_bytes, c.c_out, work.sums, work.scratch);
  }
  k.finish(work.sums, k.excess ? work.excess : nullptr, rows, c.c_out, epilogue, first, c.out);
  return DONE;
}

Outcome convolve_tiles(const ConvolutionInt8& c, const KernelsInt8& k, const TiledPairs& tiled,
                       const int32_t* row_sums) {
  const int64_t c_in = c.channels[0] + c.channels[1];
  const int64_t width = (c.c_out + k.width - 1) / k.width * k.width;
  const int64_t sums_bytes = tiled.tile_rows * width * 4;
  const int64_t excess_bytes = (tiled.tile_rows * 4 + 63) / 64 * 64;
  const int64_t scratch_bytes = k.scratch_bytes(c_in, tiled.tile_rows);
  const int64_t share = (sums_bytes + excess_bytes + scratch_bytes + 63) / 64 * 64;
  const auto memory = scratch<char>(share * c.threads);
  const EpilogueInt8 epilogue = {
      c.scale, c.shift, c.residual, static_cast<float>(c.residual_scale), c.relu, c.out_type};
  std::atomic<int> outcome{DONE};
  std::atomic<int64_t> shares{0};
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
  {
    char* mine = memory.get() + shares++ * share;
    const Workspace work = {reinterpret_cast<int32_t*>(mine),
                            reinterpret_cast<int32_t*>(mine + sums_bytes),
                            mine + sums_bytes + excess_bytes};
    if (k.enter && c_in) k.enter(c_in);
#pragma omp for schedule(dynamic)
    for (int64_t tile = 0; tile < tiled.tiles; ++tile) {
      if (outcome.load(std::memory_order_relaxed) != DONE) continue;
      const Outcome mine_is = convolve_tile(c, k, tiled, epilogue, tile, row_sums, work);
      if (mine_is != DONE) outcome = mine_is;
    }
    if (k.leave && c_in) k.leave();
  }
  return static_cast<Outcome>(outcome.load());
}

void check_packed(const ConvolutionInt8& c) {
  const int64_t c_in = c.channels[0] + c.channels[1];
  PackedHeader header = {};
  if (c.packed_size >= static_cast<int64_t>(sizeof header))
    std::memcpy(&header, c.packed, sizeof header);
  if (std::memcmp(header.magic, MAGIC, sizeof MAGIC) != 0)
    throw std::runtime_error("weight must be int8 or come from pack_int8_weight, got other bytes");
  if (header.layout != kernels_i8().layout)
    throw std::runtime_error(
        "weight must be packed for the instruction set in use; pack the int8 weight again");
  if (header.taps != c.taps || header.c_in != c_in || header.c_out != c.c_out ||
      c.packed_size != packed_bytes(c.taps, c_in, c.c_out))
    throw std::runtime_error("packed weight must be of " + std::to_string(c.taps) + " taps, " +
                             std::to_string(c_in) + " input and " + std::to_string(c.c_out) +
                             " output channels, got " + std::to_string(header.taps) + ", " +
                             std::to_string(header.c_in) + " and " + std::to_string(header.c_out));
}

void check_offsets(const ConvolutionInt8& c) {
  bool right = c.offset_ptr[0] == 0 && c.offset_ptr[c.taps] == c.num_pairs;
  for (int64_t tap = 0; tap < c.taps; ++tap) right &= c.offset_ptr[tap] <= c.offset_ptr[tap + 1];
  if (!right) throw std::runtime_error("offset_ptr must ascend from 0 to the number of pairs");
}

// Output rows of a tile: their sums fill a part of L2, and there are enough tiles for the threads.
int64_t choose_tile_rows(const ConvolutionInt8& c) {
  constexpr int64_t MOST_ROWS = 512, LEAST_ROWS = 64, MOST_SUMS = 1 << 17;
  const int64_t fitting = MOST_SUMS / std::max<int64_t>(c.c_out, 1) / 64 * 64;
  const int64_t shared = (c.num_out / (4 * c.threads) + 63) / 64 * 64;
  return std::max(LEAST_ROWS, std::min({MOST_ROWS, fitting, shared}));
}

}  // namespace

void convolve_i8(const ConvolutionInt8& c) {
  const KernelsInt8& k = kernels_i8();
  check_packed(c);
  check_offsets(c);
  if (c.num_out == 0 || c.c_out == 0) return;
  TiledPairs tiled(c, choose_tile_rows(c));
  Scratch<int32_t> row_sums;
  if (k.excess) {
    constexpr int64_t CHUNK = 4096;
    row_sums = scratch<int32_t>(c.num_in);
    const RowsInt8 rows = {c.feats[0], c.feats[1], c.channels[0], c.channels[1]};
#pragma omp parallel for num_threads(c.threads) if (c.threads > 1)
    for (int64_t first = 0; first < c.num_in; first += CHUNK)
      k.sum_rows(rows, first, std::min(first + CHUNK, c.num_in), row_sums.get());
  }
  Outcome outcome = convolve_tiles(c, k, tiled, row_sums.get());
  if (outcome == UNORDERED) {
    tiled.sort(c);
    outcome = convolve_tiles(c, k, tiled, row_sums.get());
  }
  if (outcome != DONE)
    throw std::runtime_error("the kernel map's input rows must lie in [0, num_in)");
}

}  // namespace pointlib

using namespace pointlib;

// Bytes of packed weights.
POINTLIB_API int64_t pl_i8_packed_bytes(int64_t taps, int64_t c_in, int64_t c_out) {
  return guarded([&]() -> int64_t { return packed_bytes(taps, c_in, c_out); });
}

// weight (taps, c_in, c_out), contiguous -> packed for the chosen set.
POINTLIB_API int64_t pl_i8_pack(const int8_t* weight, int64_t taps, int64_t c_in, int64_t c_out,
                                char* packed, int64_t threads) {
  return guarded([&]() -> int64_t {
    const KernelsInt8& k = kernels_i8();
    PackedHeader header = {{}, k.layout, taps, c_in, c_out, {}};
    std::memcpy(header.magic, MAGIC, sizeof MAGIC);
    std::memcpy(packed, &header, sizeof header);
    const int64_t bytes = k.packed_bytes(c_in, c_out);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t tap = 0; tap < taps; ++tap)
      k.pack(weight + tap * c_in * c_out, c_in, c_out, packed + sizeof header + tap * bytes);
    return 0;
  });
}

POINTLIB_API int64_t pl_i8_conv(const ConvolutionInt8* convolution) {
  return guarded([&]() -> int64_t {
    convolve_i8(*convolution);
    return 0;
  });
}

// to = round(from / step), limited to +-127; `from` is float32, or bfloat16 where `half`.
POINTLIB_API int64_t pl_i8_quantize(const void* from, int64_t half, int64_t count, float step,
                                    int8_t* to, int64_t threads) {
  return guarded([&]() -> int64_t {
    constexpr int64_t CHUNK = 1 << 16;
    const KernelsInt8& k = kernels_i8();
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < count; first += CHUNK) {
      const int64_t size = std::min(CHUNK, count - first);
      if (half)
        k.quantize_bf16(static_cast<const uint16_t*>(from) + first, size, step, to + first);
      else
        k.quantize_f32(static_cast<const float*>(from) + first, size, step, to + first);
    }
    return 0;
  });
}
