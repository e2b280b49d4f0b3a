// What cuda/ptx.cuh declares, on the CPU: fragments are gathered into whole matrices by the layouts
// of the PTX ISA, multiplied, and dealt out again.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

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

// The element types: how many a register holds, and the value of one.
struct Half {
  static constexpr int PER_REGISTER = 2;
  static float value(unsigned r, int i) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(r >> 16 * i)));
  }
};
struct Bfloat16 {
  static constexpr int PER_REGISTER = 2;
  static float value(unsigned r, int i) {
    return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(r >> 16 * i)));
  }
};
struct Tf32 {
  static constexpr int PER_REGISTER = 1;
  static float value(unsigned r, int) { return __uint_as_float(r & 0xffffe000u); }
};
struct Int8 {
  static constexpr int PER_REGISTER = 4;
  static int value(unsigned r, int i) { return static_cast<signed char>(r >> 8 * i); }
};

// What a lane shows in a product: its part of d, a and b.
template <class Sum, int D, int A, int B>
struct Fragments {
  Sum d[D];
  unsigned a[A], b[B];
};

// d += a b for M x 8 x K elements. A register of lane 4 g + t holds PER neighbours along k of row
// (or column) g, from k = PER t on; a's next register is 8 rows further, then both a's and b's next
// are 4 PER further along k.
template <class Element, class Sum, int M, int K>
void multiply(Exchange& shown) {
  constexpr int PER = Element::PER_REGISTER, HALVES = M / 8, STEPS = K / (4 * PER);
  using Lane = Fragments<Sum, 2 * HALVES, HALVES * STEPS, STEPS>;
  static Sum a[M][K], b[8][K];
  for (int lane = 0; lane < LANES; ++lane) {
    const Lane& held = shown.at<Lane>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int step = 0; step < STEPS; ++step) {
      for (int i = 0; i < PER; ++i) {
        const int k = 4 * PER * step + PER * t + i;
        for (int half = 0; half < HALVES; ++half) {
          a[g + 8 * half][k] = Element::value(held.a[HALVES * step + half], i);
        }
        b[g][k] = Element::value(held.b[step], i);
      }
    }
  }
  for (int lane = 0; lane < LANES; ++lane) {
    Lane& held = shown.at<Lane>(lane);
    for (int i = 0; i < 2 * HALVES; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < K; ++k) held.d[i] += a[row][k] * b[column][k];
    }
  }
}

template <class Element, int M, int K, class Sum, int D, int A, int B>
void mma(const char* what, Sum (&d)[D], const unsigned (&a)[A], const unsigned (&b)[B],
         const char* file, int line) {
  using Lane = Fragments<Sum, D, A, B>;
  static_assert(D == M / 4 && A * Element::PER_REGISTER == M * K / 32 &&
                B * Element::PER_REGISTER == K / 4);
  Lane& held = emulator::exchange().at<Lane>(emulator::lane());
  memcpy(held.d, d, sizeof d);
  memcpy(held.a, a, sizeof a);
  memcpy(held.b, b, sizeof b);
  emulator::meet(what, 0xffffffffu, multiply<Element, Sum, M, K>, file, line);
  memcpy(d, held.d, sizeof d);
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
  emulated::mma<emulated::Half, 16, 8>("mma_f16_k8", d, a, b, file, line);
}
inline void mma_s8_k16(int (&d)[2], const unsigned (&a)[1], const unsigned (&b)[1], EMULATOR_SITE) {
  emulated::mma<emulated::Int8, 8, 16>("mma_s8_k16", d, a, b, file, line);
}

#if __CUDA_ARCH__ >= 800

inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
  emulated::mma<emulated::Half, 16, 16>("mma_f16", d, a, b, file, line);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
  emulated::mma<emulated::Bfloat16, 16, 16>("mma_bf16", d, a, b, file, line);
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
  emulated::mma<emulated::Tf32, 16, 8>("mma_tf32", d, a, b, file, line);
}
inline void mma_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
  emulated::mma<emulated::Int8, 16, 32>("mma_s8", d, a, b, file, line);
}

#endif  // __CUDA_ARCH__ >= 800

}  // namespace pointlib::ptx
