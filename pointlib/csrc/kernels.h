// The inner loops that are compiled once for each instruction set, as a table of functions.
//
// A convolution works tile by tile: a block of output rows whose sums stay in cache. For each tap,
// the pairs of that tile bring input rows that are multiplied by the tap's weights. Weights are
// packed once into panels: columns in groups of a few vectors, so that the innermost loop reads
// them in order.
#pragma once

#include <cstdint>

namespace pointlib {

// Pairs of one tap inside one tile.
struct Pairs {
  const int32_t* in;   // input rows
  const int32_t* out;  // output rows, all different
  int64_t count;
  int32_t out_base;  // first output row of the tile: row out[p] is row out[p] - out_base of the
                     // accumulator
};

// What happens to a finished sum, in this order: * scale + shift, + residual, activation.
struct Epilogue {
  const float* scale;    // (c_out,) or null for 1
  const float* shift;    // (c_out,) or null for 0
  const void* residual;  // (num_out, c_out), of the output's type, or null
  float negative_slope;  // of values below 0 : 1 is no activation, 0 is ReLU
};

struct Kernels {
  const char* name;

  // Floats of a packed tap are c_in * padded(c_out), padded to whole vectors of this many floats.
  int64_t vector_floats;

  // weight[i * stride_in + o * stride_out] -> panels.
  void (*pack_f32)(const float* weight, int64_t stride_in, int64_t stride_out, int64_t c_in,
                   int64_t c_out, float* panels);
  // acc[out - out_base] += feats[in] @ panels, for every pair.
  void (*multiply_f32)(const float* feats, int64_t c_in, const Pairs& pairs, const float* panels,
                       int64_t c_out, float* acc);
  // out[row] = epilogue(acc[row]), for `rows` rows from `first_row`.
  void (*finish_f32)(const float* acc, int64_t rows, int64_t c_out, const Epilogue& epilogue,
                     int64_t first_row, float* out);
  // grad_weight += sum over pairs of feats[in]^T grad[out]; grad_weight is (c_in, c_out).
  void (*outer_f32)(const float* feats, int64_t c_in, const float* grad, int64_t c_out,
                    const Pairs& pairs, float* grad_weight);
};

// The table of the instruction set that was chosen when the library was loaded.
const Kernels& kernels();

}  // namespace pointlib
