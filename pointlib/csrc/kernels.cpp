// The kernel table of one instruction set. setup.py compiles this file once for each, with its
// flags and with POINTLIB_SET naming it. No standard container is used here: an inline function of
// the library compiled with wide instructions could replace the plain one that other files call.
#include "kernels.h"

#include <cstring>
#include <utility>

#include "tiles.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace pointlib::POINTLIB_SET {

namespace {

#include "kernels_vector.inc"
//
#include "kernels_panel.inc"
//
#include "kernels_f32.inc"
//
#include "kernels_bf16.inc"

#define POINTLIB_TEXT(x) #x
#define POINTLIB_NAME(x) POINTLIB_TEXT(x)

}  // namespace

const RowKernels* row_kernels();            // kernels_rows.cpp
const NeighborKernels* neighbor_kernels();  // kernels_neighbors.cpp

const Kernels& table() {
  static const Kernels kernels = {
      POINTLIB_NAME(POINTLIB_SET), WIDTH, FLOAT32_KERNELS, BFLOAT16_KERNELS, row_kernels(),
      neighbor_kernels()};
  return kernels;
}

}  // namespace pointlib::POINTLIB_SET
