// The int8 kernel table of one instruction set: setup.py compiles this file once for each, without
// fused multiply-adds, because the specification rounds every product. No standard container is
// used here, as in kernels.cpp.
#include "kernels_i8.h"

#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AMX_INT8__) || defined(__AMXINT8__)  // gcc, clang
#include "tiles.h"
#endif

namespace pointlib::POINTLIB_SET {

namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#include "kernels_i8_finish.inc"

#if defined(__AMX_INT8__) || defined(__AMXINT8__)  // gcc, clang
#include "kernels_i8_tiles.inc"
#else
#include "kernels_i8_vector.inc"
#endif

}  // namespace

const KernelsInt8& table_i8() {
  static const KernelsInt8 kernels = {
      LAYOUT,   WIDTH,    EXCESS, packed_bytes,    scratch_bytes,     pack, ENTER, LEAVE,
      multiply, SUM_ROWS, finish, quantize<float>, quantize<uint16_t>};
  return kernels;
}

}  // namespace pointlib::POINTLIB_SET
