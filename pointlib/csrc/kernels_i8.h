// int8 convolution: the inner loops that are compiled once for each instruction set, as a table of
// functions, and the convolution that is made of them. What it computes, bit by bit, is written in
// pointlib/ops/quantized.py.
#pragma once

#include <cstdint>

namespace pointlib {

enum OutputType : int64_t { OUT_INT8 = 0, OUT_FLOAT32 = 1, OUT_BFLOAT16 = 2 };

// How packed weights lie in memory; a set reads only its own.
enum LayoutInt8 : int64_t {
  LAYOUT_PLAIN = 1,     // int32
  LAYOUT_PAIRS_8 = 2,   // int16, 2 input channels together, vectors of 8 columns
  LAYOUT_PAIRS_16 = 3,  // the same with 16 columns
  LAYOUT_QUADS = 4,     // weight + 128 as uint8, 4 input channels together, 16 columns
  LAYOUT_TILES = 5      // int8, tiles of AMX
};

// Input rows: the channels of `a`, then those of `b`.
struct RowsInt8 {
  const int8_t* a;
  const int8_t* b;  // not read where c_b is 0
  int64_t c_a, c_b;
};

// Pairs of one tap inside one tile of output rows.
struct PairsInt8 {
  const int32_t* in;   // input rows
  const int32_t* out;  // output rows, all different
  int64_t count;
  int64_t out_base;  // first output row of the tile
};

// What becomes of a finished sum, each step rounded to float32: * scale, + shift,
// + residual * residual_scale, ReLU, then rounded to the output type.
struct EpilogueInt8 {
  const float* scale;      // (c_out,)
  const float* shift;      // (c_out,)
  const int8_t* residual;  // (num_out, c_out) or null
  float residual_scale;
  int64_t relu;
  int64_t out_type;  // OutputType
};

struct KernelsInt8 {
  int64_t layout;  // LayoutInt8
  int64_t width;   // columns of a vector; a row of sums is c_out rounded up to a multiple of it

  // Packed weights have 128 added, so a sum is 128 times the sum of its input rows too large.
  bool excess;

  // Bytes of one packed tap, and of the scratch memory of `multiply` for this many pairs at most.
  int64_t (*packed_bytes)(int64_t c_in, int64_t c_out);
  int64_t (*scratch_bytes)(int64_t c_in, int64_t pairs);
  // weight (c_in, c_out) -> packed.
  void (*pack)(const int8_t* weight, int64_t c_in, int64_t c_out, void* packed);
  // Called by a thread before and after `multiply`; null where there is nothing to set up.
  void (*enter)(int64_t c_in);
  void (*leave)();
  // sums[out - out_base] += rows[in] @ weight, for every pair.
  void (*multiply)(const RowsInt8& rows, const PairsInt8& pairs, const void* packed, int64_t c_out,
                   int32_t* sums, void* scratch);
  // Sum of the channels of each row, for sets with an excess.
  void (*sum_rows)(const RowsInt8& rows, int64_t first, int64_t last, int32_t* sums);
  // out[first_row + row] = epilogue(sums[row] - excess[row]); `excess` may be null.
  void (*finish)(const int32_t* sums, const int32_t* excess, int64_t rows, int64_t c_out,
                 const EpilogueInt8& epilogue, int64_t first_row, void* out);

  // to = round(from / step), limited to +-127.
  void (*quantize_f32)(const float* from, int64_t count, float step, int8_t* to);
  void (*quantize_bf16)(const uint16_t* from, int64_t count, float step, int8_t* to);
};

// The table of the instruction set that was chosen when the library was loaded.
const KernelsInt8& kernels_i8();

// Mirrors ConvolutionInt8 in pointlib/ops/_cpu/quantized.py.
struct ConvolutionInt8 {
  const int8_t* feats[2];  // (num_in, channels[i]) each; the second is null where there is one
  int64_t channels[2];
  const void* packed;  // from pl_i8_pack, 64-byte aligned or not
  int64_t packed_size;
  const int32_t* in_index;
  const int32_t* out_index;
  const int64_t* offset_ptr;
  int64_t taps, num_pairs, num_in, num_out, c_out;
  const float* scale;
  const float* shift;
  const int8_t* residual;
  double residual_scale;
  int64_t relu, out_type;
  void* out;
  int64_t threads;
};

// Carries it out; throws std::runtime_error where an argument is wrong.
void convolve_i8(const ConvolutionInt8& convolution);

}  // namespace pointlib
