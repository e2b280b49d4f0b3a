// What cuda/ptx.cuh declares, on the CPU.
#pragma once

#include "cuda_emulator.h"
#include "tensor_cores.h"

namespace pointlib::ptx {

#if __CUDA_ARCH__ >= 800

template <int BYTES>
void cp_async(void* shared, const void* global, bool valid, EMULATOR_SITE) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::copy_async(shared, global, BYTES, valid, file, line);
}

inline void cp_async_commit() { emulator::copy_commit(); }

template <int N>
void cp_async_wait() {
  emulator::copy_wait(N);
}

#endif  // __CUDA_ARCH__ >= 800

namespace emulated {

using emulator::Exchange;
using emulator::LANES;

// ldmatrix: each lane shows the address of a row, of which only the first 8 COUNT count.
template <int COUNT>
void load_matrices(unsigned (&r)[COUNT], const void* row_of_this_lane, bool transposed,
                   const char* what, const char* file, int line) {
  const int lane = emulator::lane();
  if (lane < 8 * COUNT || __CUDA_ARCH__ == 750) {  // sm_75 wants an address of every lane
    if (reinterpret_cast<size_t>(row_of_this_lane) % 16 != 0) {
      emulator::fail(file, line, "%s: the row's address must be a multiple of 16", what);
    }
    if (!emulator::is_shared(row_of_this_lane, 16)) {
      emulator::fail(file, line, "%s: the row must lie in shared memory", what);
    }
  }
  Exchange& shown = emulator::exchange();
  shown.at<const void*>(lane) = row_of_this_lane;
  emulator::meet(what, 0xffffffffu, nullptr, file, line);
  for (int i = 0; i < COUNT; ++i) {
    const auto element = [&](int row, int column) -> unsigned {
      return static_cast<const unsigned short*>(shown.at<const void*>(8 * i + row))[column];
    };
    const int g = lane / 4, t = lane % 4;
    r[i] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                      : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
}

// Each lane shows its fragments, and the last to arrive multiplies.
template <class Sum, int D, int A, int B>
void mma(const char* what, void (*multiply)(Exchange&), Sum (&d)[D], const unsigned (&a)[A],
         const unsigned (&b)[B], const char* file, int line) {
  auto& shown = emulator::exchange().at<emulator::Fragments<Sum, D, A, B>>(emulator::lane());
  memcpy(shown.d, d, sizeof d);
  memcpy(shown.a, a, sizeof a);
  memcpy(shown.b, b, sizeof b);
  emulator::meet(what, 0xffffffffu, multiply, file, line);
  memcpy(d, shown.d, sizeof d);
}

}  // namespace emulated

inline void ldmatrix_x4(unsigned (&r)[4], const void* row_of_this_lane, EMULATOR_SITE) {
  emulated::load_matrices(r, row_of_this_lane, false, "ldmatrix_x4", file, line);
}
inline void ldmatrix_x2(unsigned (&r)[2], const void* row_of_this_lane, EMULATOR_SITE) {
  emulated::load_matrices(r, row_of_this_lane, false, "ldmatrix_x2", file, line);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row_of_this_lane, EMULATOR_SITE) {
  emulated::load_matrices(r, row_of_this_lane, true, "ldmatrix_x4_trans", file, line);
}
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row_of_this_lane, EMULATOR_SITE) {
  emulated::load_matrices(r, row_of_this_lane, true, "ldmatrix_x2_trans", file, line);
}

inline void mma_f16_k8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1],
                       EMULATOR_SITE) {
  emulated::mma("mma_f16_k8", emulator::multiply_f16_k8, d, a, b, file, line);
}
inline void mma_s8_k16(int (&d)[2], const unsigned (&a)[1], const unsigned (&b)[1], EMULATOR_SITE) {
  emulated::mma("mma_s8_k16", emulator::multiply_s8_k16, d, a, b, file, line);
}

#if __CUDA_ARCH__ >= 800

inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
  emulated::mma("mma_f16", emulator::multiply_f16, d, a, b, file, line);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
  emulated::mma("mma_bf16", emulator::multiply_bf16, d, a, b, file, line);
}

// To nearest, ties away from zero.
inline unsigned to_tf32(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    return (bits & 0x7fffffu) != 0 ? 0x7fffffffu & 0xffffe000u : bits;
  }
  return (bits + 0x1000u) & 0xffffe000u;
}

inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
  emulated::mma("mma_tf32", emulator::multiply_tf32, d, a, b, file, line);
}
inline void mma_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
  emulated::mma("mma_s8", emulator::multiply_s8, d, a, b, file, line);
}

#endif  // __CUDA_ARCH__ >= 800

}  // namespace pointlib::ptx
