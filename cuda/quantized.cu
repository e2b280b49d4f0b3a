// int8 convolution and quantization, bit by bit as pointlib/ops/quantized.py specifies. A block
// owns ROWS output rows and COLUMNS output channels: for each tap that any of its rows has, and
// each slice of input channels, it gathers the rows and the weights, multiplies them by tensor
// cores, and keeps the int32 sums in registers until they are rescaled.
#include "epilogue.cuh"
#include "gathered_rows.cuh"
#include "implicit_gemm_rows.cuh"
#include "ptx.cuh"
#include "types.cuh"

namespace pointlib {

constexpr int SLICE = 64;  // input channels of a step
constexpr int STRIDE =
    SLICE + 16;           // bytes from row to row in shared memory, so that ldmatrix finds 32 banks
constexpr int GROUP = 8;  // output channels that a thread finishes at once

// The channels of one or two feature matrices side by side, and the weights they meet.
struct Int8Operands {
  const int8_t* feats[2];
  int channels[2];       // of each row, a multiple of 16; 0 for a matrix that is not there
  const int8_t* weight;  // (taps, columns, depth)
  int columns;
  int depth;   // a multiple of 16
  int second;  // where the second matrix begins in it
};

// Half to even, limited to +-127; 0 for NaN.
__device__ __forceinline__ int8_t to_int8(float value) {
  if (value != value) return 0;
  return static_cast<int8_t>(rintf(fminf(fmaxf(value, -127.0f), 127.0f)));
}

// What follows the sums.
struct Rescaling {
  const float* scale;
  const float* shift;
  const int8_t* residual;  // or null
  float residual_scale;
  bool relu;
  int64_t columns;
  bool aligned;  // every group of channels is whole, and begins at a multiple of its size

  // One product, one sum, each rounded: the compiler may not fuse these.
  __device__ __forceinline__ float finish(int sum, float factor, float term, int added) const {
    float value = __fadd_rn(__fmul_rn(static_cast<float>(sum), factor), term);
    if (residual) {
      value = __fadd_rn(value, __fmul_rn(static_cast<float>(added), residual_scale));
    }
    return relu && !(value > 0) ? 0.0f : value;
  }

  template <class Out>
  __device__ __forceinline__ static Out rounded(float value) {
    if constexpr (sizeof(Out) == 1) {
      return to_int8(value);
    } else {
      return narrow<Out>(value);
    }
  }

  // Channels first .. first + GROUP - 1 of a row, those that there are.
  template <class Out>
  __device__ __forceinline__ void write(Out* out, int64_t row, int64_t first,
                                        const Vector<int, GROUP>& sums) const {
    const int64_t at = row * columns + first;
    if (aligned) {
      const auto factors = *reinterpret_cast<const Vector<float, GROUP>*>(scale + first);
      const auto terms = *reinterpret_cast<const Vector<float, GROUP>*>(shift + first);
      Vector<int8_t, GROUP> added = {};
      if (residual) added = *reinterpret_cast<const Vector<int8_t, GROUP>*>(residual + at);
      Vector<Out, GROUP> result;
#pragma unroll
      for (int i = 0; i < GROUP; ++i) {
        result.at[i] = rounded<Out>(finish(sums.at[i], factors.at[i], terms.at[i], added.at[i]));
      }
      *reinterpret_cast<Vector<Out, GROUP>*>(out + at) = result;
      return;
    }
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
      if (first + i >= columns) break;
      const int added = residual ? residual[at + i] : 0;
      out[at + i] = rounded<Out>(finish(sums.at[i], scale[first + i], shift[first + i], added));
    }
  }
};

template <int ROWS, int COLUMNS>
struct Int8Tile {
  static constexpr int WARPS_M = ROWS / 32, WARPS_N = COLUMNS <= 64 && ROWS == 128 ? 1 : 2;
  static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
  static constexpr int N = COLUMNS / WARPS_N;  // a warp has 32 rows and N columns
  static constexpr int STAGE = (ROWS + COLUMNS) * STRIDE;
  static constexpr int SUMS_STRIDE = N + 8;
  static constexpr int SUMS = WARPS_M * WARPS_N * 16 * SUMS_STRIDE * 4;  // bytes of 16 rows a warp
  static constexpr int STAGED = STAGES * STAGE > SUMS ? STAGES * STAGE : SUMS;
  using Rows = TileRows<ROWS, THREADS>;

  int sums[2][N / 8][4];

  __device__ __forceinline__ Int8Tile() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
      }
    }
  }

  __device__ static __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / WARP; }
  __device__ static __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % WARP; }

  // Start to copy what one step multiplies: the tile's input rows of a tap, and its weights.
  __device__ static __forceinline__ void copy(const Int8Operands& from, const int32_t* sources,
                                              int64_t tap, int step, int first_column,
                                              unsigned char* stage) {
    constexpr int CHUNKS = SLICE / 16;
    const int steps_of_first = (from.channels[0] + SLICE - 1) / SLICE;
    const bool second = step >= steps_of_first;
    const int8_t* feats = second ? from.feats[1] : from.feats[0];
    const int channels = second ? from.channels[1] : from.channels[0];
    const int first = (second ? step - steps_of_first : step) * SLICE;
    const int offset = (second ? from.second : 0) + first;
    const int8_t* weight = from.weight + (tap * from.columns + first_column) * from.depth + offset;
#pragma unroll
    for (int turn = 0; turn < (ROWS * CHUNKS + THREADS - 1) / THREADS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      const int row = item / CHUNKS, byte = item % CHUNKS * 16;
      if (ROWS * CHUNKS % THREADS != 0 && row >= ROWS) break;
      const int64_t source = sources[row];
      const bool there = source >= 0 && first + byte < channels;
      copy_16(stage + row * STRIDE + byte, there ? feats + source * channels + first + byte : feats,
              there);
    }
    stage += ROWS * STRIDE;
#pragma unroll
    for (int turn = 0; turn < (COLUMNS * CHUNKS + THREADS - 1) / THREADS; ++turn) {
      const int item = turn * THREADS + static_cast<int>(threadIdx.x);
      const int row = item / CHUNKS, byte = item % CHUNKS * 16;
      if (COLUMNS * CHUNKS % THREADS != 0 && row >= COLUMNS) break;
      const bool there = first_column + row < from.columns && offset + byte < from.depth;
      copy_16(stage + row * STRIDE + byte, there ? weight + row * from.depth + byte : from.weight,
              there);
    }
  }

  // sums += rows x weights, over the first `channels` of the slice.
  __device__ __forceinline__ void add(const unsigned char* stage, int channels) {
    const int eight = lane() / 8, row = lane() % 8;  // of the four 8 x 16 matrices of ldmatrix
    const unsigned char* left = stage + warp() / WARPS_N * 32 * STRIDE;
    const unsigned char* right = stage + (ROWS + warp() % WARPS_N * N) * STRIDE;
#pragma unroll
    for (int k = 0; k < SLICE; k += 32) {
      if (k >= channels) break;
      unsigned a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        ptx::ldmatrix_x4(a[m], left + (m * 16 + eight % 2 * 8 + row) * STRIDE + k + eight / 2 * 16);
      }
#pragma unroll
      for (int n = 0; n < N / 8; n += 2) {
        unsigned b[4];
        ptx::ldmatrix_x4(b, right + (n * 8 + eight / 2 * 8 + row) * STRIDE + k + eight % 2 * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply(sums[m][n], a[m], b[0], b[1]);
          multiply(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ static __forceinline__ void multiply(int (&sum)[4], const unsigned (&a)[4],
                                                  unsigned low, unsigned high) {
#if __CUDA_ARCH__ >= 800
    ptx::mma_s8(sum, a, {low, high});
#else
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // rows 0 .. 7 and 8 .. 15
      int part[2] = {sum[2 * half], sum[2 * half + 1]};
      ptx::mma_s8_k16(part, {a[half]}, {low});
      ptx::mma_s8_k16(part, {a[half + 2]}, {high});
      sum[2 * half] = part[0], sum[2 * half + 1] = part[1];
    }
#endif
  }

  // Rescale and write, 16 rows of a warp at a time through shared memory, so that rows are written
  // whole.
  template <class Out>
  __device__ __forceinline__ void store(const Rescaling& rescaling, const int32_t* rows,
                                        int first_column, unsigned char* shared, Out* out) {
    int* own = reinterpret_cast<int*>(shared) + warp() * 16 * SUMS_STRIDE;
    const int first_row = warp() / WARPS_N * 32;
    first_column += warp() % WARPS_N * N;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
        int* target = own + lane() / 4 * SUMS_STRIDE + n * 8 + lane() % 4 * 2;
        *reinterpret_cast<int2*>(target) = make_int2(sums[m][n][0], sums[m][n][1]);
        *reinterpret_cast<int2*>(target + 8 * SUMS_STRIDE) =
            make_int2(sums[m][n][2], sums[m][n][3]);
      }
      __syncwarp();
#pragma unroll 1
      for (int item = lane(); item < 16 * N / GROUP; item += WARP) {
        const int row = item / (N / GROUP), column = item % (N / GROUP) * GROUP;
        const int32_t target = rows[first_row + m * 16 + row];
        if (target < 0 || first_column + column >= rescaling.columns) continue;
        const auto group =
            *reinterpret_cast<const Vector<int, GROUP>*>(own + row * SUMS_STRIDE + column);
        rescaling.write(out, target, first_column + column, group);
      }
      __syncwarp();
    }
  }
};

// out (num_rows, columns) of int8 (kind 0), float (1) or bfloat16 (2).
template <int ROWS, int COLUMNS>
__global__ void __launch_bounds__(Int8Tile<ROWS, COLUMNS>::THREADS, 1)
    sparse_conv_int8(const int8_t* feats, const int8_t* more_feats, int64_t channels,
                     int64_t more_channels, const int8_t* weight, int64_t depth, int64_t second,
                     int64_t taps, const uint32_t* mask, const int32_t* row_ptr,
                     const int32_t* neighbours, const int32_t* order, int64_t num_rows,
                     const float* scale, const float* shift, const int8_t* residual,
                     float residual_scale, int64_t relu, void* out, int64_t kind, int64_t columns,
                     int64_t aligned) {
  using Tile = Int8Tile<ROWS, COLUMNS>;
  extern __shared__ __align__(16) unsigned char shared_memory[];  // stages, and then sums; rows
  auto& rows = *reinterpret_cast<typename Tile::Rows*>(shared_memory + Tile::STAGED);
  const int tiles = (static_cast<int>(columns) + COLUMNS - 1) / COLUMNS;
  const int first_column = static_cast<int>(blockIdx.x % tiles) * COLUMNS;
  const Int8Operands from = {{feats, more_feats},
                             {static_cast<int>(channels), static_cast<int>(more_channels)},
                             weight,
                             static_cast<int>(columns),
                             static_cast<int>(depth),
                             static_cast<int>(second)};
  const RowMap map = {mask, row_ptr, neighbours, order, num_rows, (taps + 31) / 32, 0, taps};
  const int of_first = (from.channels[0] + SLICE - 1) / SLICE;
  const int slices = of_first + (from.channels[1] + SLICE - 1) / SLICE;

  Tile tile;
  const int32_t mine = rows.look_up(map, blockIdx.x / tiles);
  int32_t start = mine >= 0 && mask ? row_ptr[mine] : 0;
#pragma unroll 1
  for (int word = 0; word < map.words; ++word) {
    const uint32_t window = rows.open(map, word, mine, start);
    const int steps = __popc(window) * slices;
    uint32_t left = window;   // taps that are still to be copied
    int rank = 0, slice = 0;  // of the step that is copied
    const auto copy = [&](int step) {
      if (step < steps) {
        const int tap = word * 32 + __ffs(static_cast<int>(left)) - 1;
        unsigned char* stage = shared_memory + step % STAGES * Tile::STAGE;
        Tile::copy(from, rows.source[rank], tap, slice, first_column, stage);
        if (++slice == slices) slice = 0, ++rank, left &= left - 1;
      }
      close_stage();
    };
    for (int step = 0; step < STAGES - 1; ++step) copy(step);
    int multiplied = 0, part = 0;  // tap and slice of the step that is multiplied
    for (int step = 0; step < steps; ++step) {
      wait_for_stage();
      __syncthreads();
      copy(step + STAGES - 1);
      const int rest = part < of_first ? from.channels[0] - part * SLICE
                                       : from.channels[1] - (part - of_first) * SLICE;
      if (rows.present[multiplied][Tile::warp() / Tile::WARPS_N]) {
        tile.add(shared_memory + step % STAGES * Tile::STAGE, rest);
      }
      if (++part == slices) part = 0, ++multiplied;
    }
    __syncthreads();
    rows.close();
  }
  const Rescaling rescaling = {scale,     shift,   residual,    residual_scale,
                               relu != 0, columns, aligned != 0};
  if (kind == 0) {
    tile.store(rescaling, rows.row, first_column, shared_memory, static_cast<int8_t*>(out));
  } else if (kind == 1) {
    tile.store(rescaling, rows.row, first_column, shared_memory, static_cast<float*>(out));
  } else {
    tile.store(rescaling, rows.row, first_column, shared_memory, static_cast<__nv_bfloat16*>(out));
  }
}

// out = feats / step, rounded; GROUP elements a thread. `aligned`: feats begins at 16 bytes.
template <class T>
__global__ void quantize_int8(const T* __restrict__ feats, float step, int8_t* __restrict__ out,
                              int64_t count, int64_t aligned) {
  const int64_t first = global_thread() * GROUP;
  if (first >= count) return;
  const auto quantized = [step](T value) {
    return to_int8(__fdiv_rn(static_cast<float>(widen(value)), step));
  };
  if (aligned && first + GROUP <= count) {
    const auto group = *reinterpret_cast<const Vector<T, GROUP>*>(feats + first);
    Vector<int8_t, GROUP> result;
#pragma unroll
    for (int i = 0; i < GROUP; ++i) result.at[i] = quantized(group.at[i]);
    *reinterpret_cast<Vector<int8_t, GROUP>*>(out + first) = result;
    return;
  }
  for (int64_t at = first; at < count && at < first + GROUP; ++at) out[at] = quantized(feats[at]);
}

}  // namespace pointlib
