// The inner loops that are compiled once for each instruction set, as a table of functions.
//
// A convolution works tile by tile: a block of output rows whose sums stay in cache. For each tap,
// the pairs of that tile bring input rows that are multiplied by the tap's weights. Weights are
// packed once into panels: columns in groups of a few vectors, so that the innermost loop reads
// them in order.
#pragma once

#include <cstdint>

namespace pointlib {

enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1 };

// Pairs of one tap inside one tile.
struct Pairs {
  const int32_t* in;   // input rows
  const int32_t* out;  // output rows, all different
  int64_t count;
  int32_t
      out_base;  // first output row of the tile: row out[p] is row out[p] - out_base of the sums
};

// One tap's weights (c_in, c_out) as they come, with strides in elements.
struct Weight {
  const void* data;
  int64_t dtype, stride_in, stride_out;
};

// What happens to a finished sum, in this order: * scale + shift, + residual, activation.
struct Epilogue {
  const float* scale;    // (c_out,) or null for 1
  const float* shift;    // (c_out,) or null for 0
  const void* residual;  // (num_out, c_out) of the output's type, or null
  float negative_slope;  // of values below 0: 1 is no activation, 0 is ReLU
};

// The inner loops of one type of features. Sums are float32 rows of padded(c_out) floats.
struct ConvKernels {
  // Writes weight[i * stride_in + o * stride_out], of either type, as panels, in packed_bytes(c_in,
  // c_out).
  void (*pack)(const Weight& weight, int64_t c_in, int64_t c_out, void* panels);
  int64_t (*packed_bytes)(int64_t c_in, int64_t c_out);
  // sums[out - out_base] += feats[in] @ panels, for every pair.
  void (*multiply)(const void* feats, int64_t c_in, const Pairs& pairs, const void* panels,
                   int64_t c_out, float* sums);
  // out[first_row + row] = epilogue(sums[row]).
  void (*finish)(const float* sums, int64_t rows, int64_t c_out, const Epilogue& epilogue,
                 int64_t first_row, void* out);
  // products (c_in, padded(c_out)) += sum over pairs of feats[in]^T grad[out]; `scratch` holds
  // outer_bytes.
  void (*outer)(const void* feats, int64_t c_in, const void* grad, int64_t c_out,
                const Pairs& pairs, float* products, void* scratch);
  int64_t (*outer_bytes)(int64_t c_in, int64_t c_out);
  // Called by each thread before and after its part of a convolution; null where there is nothing
  // to set up.
  void (*enter)();
  void (*leave)();
};

struct RowKernels;
struct NeighborKernels;

struct Kernels {
  const char* name;
  int64_t width;  // floats of a vector; padded(c) is c rounded up to a multiple of it
  ConvKernels float32;
  const ConvKernels* bfloat16;  // null where the set has no bfloat16 products
  const RowKernels* rows;       // by Element, see rows_element.h
  const NeighborKernels* neighbors;
};

// The table of the instruction set that was chosen when the library was loaded.
const Kernels& kernels();

}  // namespace pointlib
