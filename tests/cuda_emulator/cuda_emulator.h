// CUDA's vocabulary for g++: what a kernel of cuda/ may use, with the meaning it has on a device.
// Included before the kernel's source by a compiler option, so that the source itself is unchanged.
#pragma once

#include <limits.h>
#include <math.h>
#include <string.h>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

// `extern __shared__ __align__(16) unsigned char shared_memory[];` becomes the declaration of a
// function that returns a reference to the block's shared memory, and each use of the name a call
// of it. Shared variables of another form do not compile, for a local variable cannot be weak.
#define __shared__ __attribute__((weak))
#define shared_memory (*emulated_shared_memory())

using emulator::blockDim;
using emulator::blockIdx;
using emulator::gridDim;
using emulator::threadIdx;

// Vectors

#define EMULATOR_VECTOR(type, name, bytes)                                      \
  struct alignas(2 * bytes) name##2 { type x, y; };                             \
  struct name##3 { type x, y, z; };                                             \
  struct alignas(4 * bytes < 16 ? 4 * bytes : 16) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }              \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }   \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATOR_VECTOR(signed char, char, 1)
EMULATOR_VECTOR(unsigned char, uchar, 1)
EMULATOR_VECTOR(short, short, 2)
EMULATOR_VECTOR(unsigned short, ushort, 2)
EMULATOR_VECTOR(int, int, 4)
EMULATOR_VECTOR(unsigned, uint, 4)
EMULATOR_VECTOR(float, float, 4)
EMULATOR_VECTOR(long long, longlong, 8)
EMULATOR_VECTOR(unsigned long long, ulonglong, 8)
EMULATOR_VECTOR(double, double, 8)
#undef EMULATOR_VECTOR

// Barriers, votes and shuffles

inline void __syncthreads(EMULATOR_SITE) {
  emulator::barrier(emulator::Vote::BARRIER, 0, file, line);
}
inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
  return emulator::barrier(emulator::Vote::OR, predicate, file, line);
}
inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
  return emulator::barrier(emulator::Vote::AND, predicate, file, line);
}
inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
  return emulator::barrier(emulator::Vote::COUNT, predicate, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator::meet("__syncwarp", mask, nullptr, file, line);
}

namespace emulator {

template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, int width, const char* file,
          int line) {
  if (width < 1 || width > LANES || (width & (width - 1)) != 0) {
    fail(file, line, "%s: width must be a power of two up to 32, got %d", what, width);
  }
  Exchange& shown = exchange();
  shown.at<T>(lane()) = value;
  meet(what, mask, nullptr, file, line);
  return shown.at<T>(source);
}

inline unsigned ballot(const char* what, unsigned mask, bool predicate, const char* file,
                       int line) {
  Exchange& shown = exchange();
  shown.at<bool>(lane()) = predicate;
  meet(what, mask, nullptr, file, line);
  unsigned set = 0;
  for (int i = 0; i < LANES; ++i) set |= unsigned(shown.at<bool>(i)) << i;
  return set;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::lane();
  const int from = (lane & ~(width - 1)) | (source & (width - 1));
  return emulator::shuffle("__shfl_sync", mask, value, from, width, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::lane(), first = lane & ~(width - 1);
  const int from = static_cast<int>(delta) > lane - first ? lane : lane - static_cast<int>(delta);
  return emulator::shuffle("__shfl_up_sync", mask, value, from, width, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::lane(), last = lane | (width - 1);
  const int from = static_cast<int>(delta) > last - lane ? lane : lane + static_cast<int>(delta);
  return emulator::shuffle("__shfl_down_sync", mask, value, from, width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::lane(), from = lane ^ flipped;
  const bool reachable =
      from <= (lane | (width - 1));  // an earlier group may be read, a later may not
  return emulator::shuffle("__shfl_xor_sync", mask, value, reachable ? from : lane, width, file,
                           line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator::ballot("__ballot_sync", mask, predicate != 0, file, line);
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator::ballot("__any_sync", mask, predicate != 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator::ballot("__all_sync", mask, predicate != 0, file, line) == 0xffffffffu;
}

// Atomics: threads change only at barriers and collectives, so plain statements are atomic. They
// exist for the types that CUDA has them for, and for no others.

namespace emulator {

template <class T, class... Allowed>
constexpr bool is_one_of = (__is_same(T, Allowed) || ...);

template <class T>
struct Identity {
  using type = T;
};

template <class T, class Update>
T atomic(T* address, Update update) {
  volatile T* value = address;  // so that a loop of atomics remains one
  const T old = *value;
  *value = update(old);
  return old;
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, expression, ...)                                           \
  template <class T>                                                                     \
  T name(T* address, typename emulator::Identity<T>::type value) {                       \
    static_assert(emulator::is_one_of<T, __VA_ARGS__>, #name " has no such type");       \
    return emulator::atomic(address, [=](T old) { return static_cast<T>(expression); }); \
  }
EMULATOR_ATOMIC(atomicAdd, old + value, int, unsigned, unsigned long long, float, double)
EMULATOR_ATOMIC(atomicSub, old - value, int, unsigned)
EMULATOR_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicAnd, old& value, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicMin, old < value ? old : value, int, unsigned, long long, unsigned long long)
EMULATOR_ATOMIC(atomicMax, old > value ? old : value, int, unsigned, long long, unsigned long long)
EMULATOR_ATOMIC(atomicExch, (void(old), value), int, unsigned, unsigned long long, float)
#undef EMULATOR_ATOMIC

template <class T>
T atomicCAS(T* address, typename emulator::Identity<T>::type expected,
            typename emulator::Identity<T>::type value) {
  static_assert(emulator::is_one_of<T, int, unsigned, unsigned long long, unsigned short>,
                "atomicCAS has no such type");
  return emulator::atomic(address, [=](T old) { return old == expected ? value : old; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}

// Bits and arithmetic

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(value); }
inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll(value); }
inline unsigned __brev(unsigned value) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (value >> i & 1u) << (31 - i);
  return reversed;
}

namespace emulator {

template <class To, class From>
To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

}  // namespace emulator

inline int __float_as_int(float value) { return emulator::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return emulator::bit_cast<unsigned>(value); }
inline float __int_as_float(int value) { return emulator::bit_cast<float>(value); }
inline float __uint_as_float(unsigned value) { return emulator::bit_cast<float>(value); }
inline long long __double_as_longlong(double v) { return emulator::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return emulator::bit_cast<double>(v); }

#define EMULATOR_MIN_MAX(type)                              \
  inline type min(type a, type b) { return a < b ? a : b; } \
  inline type max(type a, type b) { return a < b ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Rounded each, never fused: the emulator is compiled with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }

inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline double rsqrt(double value) { return 1.0 / sqrt(value); }
