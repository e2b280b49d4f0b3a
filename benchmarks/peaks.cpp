// What this processor can do at most: multiply-add in float32, bfloat16 and int8 out of registers,
// and copying memory. Prints one JSON object: rates in 10^9 operations or bytes a second, over the
// threads given as the first argument, each the best of a few tries. benchmarks/peaks.py compiles
// and runs it.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1
#endif

namespace {

constexpr int TRIES = 8;
constexpr double SECONDS = 0.1;  // of one try
constexpr int CHAINS = 12;       // independent accumulators: latency times throughput, and some

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Rate of `work(rounds)`, which does `amount` a round, on every thread at once.
template <class Work>
double rate(int threads, double amount, Work work) {
  int64_t rounds = 1000;
  double best = 0;
  for (int attempt = 0; attempt < TRIES;) {
    const double start = now();
#pragma omp parallel num_threads(threads)
    work(rounds);
    const double elapsed = now() - start;
    if (elapsed < SECONDS) {
      rounds = std::max(rounds + 1, int64_t(1.2 * rounds * SECONDS / std::max(elapsed, 1e-6)));
      continue;
    }
    best = std::max(best, 1e-9 * amount * rounds * threads / elapsed);
    ++attempt;
  }
  return best;
}

// A value that the compiler can neither foresee nor drop.
template <class Vector>
inline void hide(Vector& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#else
  asm volatile("" : "+w"(value));
#endif
}

// CHAINS accumulators of `step(accumulator, a, b)`.
template <class Vector, class Operand, class Step>
void chains(int64_t rounds, Vector zero, Operand a, Operand b, Step step) {
  Vector sums[CHAINS];
  for (Vector& sum : sums) sum = zero;
  hide(a);
  hide(b);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < CHAINS; ++j) sums[j] = step(sums[j], a, b);
  }
#pragma GCC unroll 16
  for (int j = 0; j < CHAINS; ++j) hide(sums[j]);
}

#if defined(__AVX512F__)
using Floats = __m512;
inline Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
#elif defined(__AVX2__) && defined(__FMA__)
using Floats = __m256;
inline Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(a, b, sum); }
#else
typedef float Floats __attribute__((vector_size(16)));
inline Floats multiply_add(Floats sum, Floats a, Floats b) { return sum + a * b; }
#endif

double fp32(int threads) {
  const double amount = 2.0 * CHAINS * sizeof(Floats) / sizeof(float);
  return rate(threads, amount,
              [](int64_t rounds) { chains(rounds, Floats{}, Floats{}, Floats{}, multiply_add); });
}

#if defined(HAS_TILES)
// Linux hands out the tile registers on request, made before the threads that use them start.
bool tiles_permitted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

struct TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Four accumulators from two by two operands, all of 16 rows of 64 bytes: 16 * 16 * 64 / element
// multiplications each.
template <class Round>
double tiles(int threads, int per_sum, Round round) {
  return rate(threads, 4 * 2.0 * 16 * 16 * per_sum, [&](int64_t rounds) {
    TileShape shape;
    for (int t = 0; t < 8; ++t) shape.bytes[t] = 64, shape.rows[t] = 16;
    _tile_loadconfig(&shape);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t i = 0; i < rounds; ++i) round();
    _tile_release();
  });
}
#endif

// Name of the instruction and the rate; no rate where the processor has none.
struct Peak {
  const char* instruction;
  double rate;
};

Peak bf16([[maybe_unused]] int threads) {
#if defined(HAS_TILES) && defined(__AMX_BF16__)
  if (tiles_permitted()) {
    return {"amx", tiles(threads, 32, [] {
              _tile_dpbf16ps(0, 4, 6);
              _tile_dpbf16ps(1, 4, 7);
              _tile_dpbf16ps(2, 5, 6);
              _tile_dpbf16ps(3, 5, 7);
            })};
  }
#endif
#if defined(__AVX512BF16__)
  return {"vdpbf16ps", rate(threads, 2.0 * CHAINS * 32, [](int64_t rounds) {
            const auto dot = [](__m512 sum, __m512i a, __m512i b) {
              return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
            };
            chains(rounds, __m512{}, __m512i{}, __m512i{}, dot);
          })};
#endif
  return {"none", 0};
}

Peak int8([[maybe_unused]] int threads) {
#if defined(HAS_TILES) && defined(__AMX_INT8__)
  if (tiles_permitted()) {
    return {"amx", tiles(threads, 64, [] {
              _tile_dpbssd(0, 4, 6);
              _tile_dpbssd(1, 4, 7);
              _tile_dpbssd(2, 5, 6);
              _tile_dpbssd(3, 5, 7);
            })};
  }
#endif
#if defined(__AVX512VNNI__)
  return {"vpdpbusd", rate(threads, 2.0 * CHAINS * 64, [](int64_t rounds) {
            const auto dot = [](__m512i sum, __m512i a, __m512i b) {
              return _mm512_dpbusd_epi32(sum, a, b);
            };
            chains(rounds, __m512i{}, __m512i{}, __m512i{}, dot);
          })};
#endif
  return {"none", 0};
}

// Copy between two arrays of a thread's own; bytes read and bytes written both count.
double copy(int threads, size_t bytes) {
  const size_t total = bytes * threads;
  std::unique_ptr<char[]> from(new char[total]), to(new char[total]);
#pragma omp parallel num_threads(threads)
  {
    const size_t start = bytes * omp_get_thread_num();
    std::memset(from.get() + start, 1, bytes);
    std::memset(to.get() + start, 2, bytes);
  }
  double best = 0;
  const int64_t rounds = std::max<int64_t>(1, (int64_t(512) << 20) / int64_t(bytes));
  for (int attempt = 0; attempt < TRIES; ++attempt) {
    const double start = now();
#pragma omp parallel num_threads(threads)
    {
      const size_t at = bytes * omp_get_thread_num();
      for (int64_t i = 0; i < rounds; ++i) {
        std::memcpy(to.get() + at, from.get() + at, bytes);
        asm volatile("" ::: "memory");
      }
    }
    best = std::max(best, 2e-9 * double(total) * rounds / (now() - start));
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : omp_get_max_threads();
  const Peak half = bf16(threads), byte = int8(threads);
  std::printf(
      "{\"fp32\": %.0f, \"bf16\": %.0f, \"bf16_instruction\": \"%s\", \"int8\": %.0f, "
      "\"int8_instruction\": \"%s\", \"copy\": %.1f, \"copy_in_cache\": %.1f}\n",
      fp32(threads), half.rate, half.instruction, byte.rate, byte.instruction,
      copy(threads, size_t(256) << 20), copy(threads, size_t(256) << 10));
}
