// Instructions that CUDA C++ has no name for: asynchronous copies (sm_80+), matrix loads and
// tensor-core products. Fragment layouts are those of the PTX ISA, sections "Matrix Fragments for
// mma" and "ldmatrix".
#pragma once

#include "types.cuh"

#ifdef POINTLIB_CUDA_EMULATOR
#include "emulated_ptx.h"
#else

namespace pointlib::ptx {

__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

#if __CUDA_ARCH__ >= 800

// Starts copying BYTES (4, 8 or 16, both addresses multiples of it) to shared memory. Where `valid`
// is false zeros arrive and `global` is not read. They are there after cp_async_wait, for other
// threads after a barrier too.
template <int BYTES>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  const int read = valid ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
                 "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)),
                 "l"(global), "n"(BYTES), "r"(read)
                 : "memory");
  }
}

// Closes the group of the copies started since the last one.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most the N newest of this thread's groups are under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

#endif  // __CUDA_ARCH__ >= 800

// Loads 8x8 matrices of 16-bit elements: lane 8 i + j gives the address of row j of matrix i (16
// bytes, aligned), and lane l receives elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix
// i in r[i].
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row_of_this_lane) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row_of_this_lane))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], const void* row_of_this_lane) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row_of_this_lane))
               : "memory");
}

// The same with each matrix transposed: lane l receives rows 2 (l % 4) and 2 (l % 4) + 1 of column
// l / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row_of_this_lane) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row_of_this_lane))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void* row_of_this_lane) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row_of_this_lane))
               : "memory");
}

// d += a b. With g = lane / 4 and t = lane % 4, d[0], d[1] are columns 2 t, 2 t + 1 of row g and
// d[2], d[3] those of row g + 8; a register holds elements that are neighbours along k, the lower
// one in its lower half.

// 16x8x8, fp16: a[i] is row g + 8 i, k = 2 t, 2 t + 1; b[0] is column g, k = 2 t, 2 t + 1.
__device__ __forceinline__ void mma_f16_k8(float (&d)[4], const unsigned (&a)[2],
                                           const unsigned (&b)[1]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

// 8x8x16, int8: a[0] is row g and b[0] column g, k = 4 t to 4 t + 3; d are columns 2 t, 2 t + 1 of
// row g.
__device__ __forceinline__ void mma_s8_k16(int (&d)[2], const unsigned (&a)[1],
                                           const unsigned (&b)[1]) {
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a[0]), "r"(b[0]));
}

#if __CUDA_ARCH__ >= 800

// 16x8x16: a[i] is row g + 8 (i % 2), k = 8 (i / 2) + 2 t, + 1; b[i] is column g, k = 8 i + 2 t,
// + 1.
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4],
                                        const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// To nearest, ties away from zero; the result is a float whose lower 13 bits are zero.
__device__ __forceinline__ unsigned to_tf32(float value) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(value));
  return rounded;
}

// 16x8x8, tf32, one element a register: a[i] is row g + 8 (i % 2), k = t + 4 (i / 2); b[i] is
// column g, k = t + 4 i. The lower 13 bits of an element do not take part.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16x8x32, int8: a[i] is row g + 8 (i % 2), k = 16 (i / 2) + 4 t to + 3; b[i] is column g, k = 16 i
// + 4 t to + 3.
__device__ __forceinline__ void mma_s8(int (&d)[4], const unsigned (&a)[4],
                                       const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif  // __CUDA_ARCH__ >= 800

}  // namespace pointlib::ptx

#endif  // POINTLIB_CUDA_EMULATOR
