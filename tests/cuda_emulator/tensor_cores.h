// The tensor-core products that tensor_cores.cpp computes for a whole warp.
#pragma once

#include "runtime.h"

namespace emulator {

// What a lane shows in a product: its part of d, a and b.
template <class Sum, int D, int A, int B>
struct Fragments {
  Sum d[D];
  unsigned a[A], b[B];
};

EMULATOR_API void multiply_f16_k8(Exchange& shown);
EMULATOR_API void multiply_f16(Exchange& shown);
EMULATOR_API void multiply_bf16(Exchange& shown);
EMULATOR_API void multiply_tf32(Exchange& shown);
EMULATOR_API void multiply_s8_k16(Exchange& shown);
EMULATOR_API void multiply_s8(Exchange& shown);

}  // namespace emulator
