// AMX tile registers: thin functions over the instructions, or over a software model of them
// (POINTLIB_EMULATE_AMX), which proves tile code right on processors without AMX. Include it only
// in files that are compiled once for each instruction set.
#pragma once

#include <cstdint>

#if defined(POINTLIB_EMULATE_AMX)
#include <cmath>
#include <cstring>
#endif

#if defined(__AMX_TILE__) || defined(__AMXTILE__)  // gcc, clang

namespace pointlib {

namespace {

// The operand of LDTILECFG: rows, and bytes of a row, of each tile register.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int number_of_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(number_of_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(TileConfig) == 64, "as the processor reads it");

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;  // the most that a tile holds

#if defined(POINTLIB_EMULATE_AMX)

struct EmulatedTiles {
  TileConfig config;
  alignas(64) unsigned char data[8][TILE_ROWS][TILE_BYTES];
};
thread_local EmulatedTiles emulated;

inline void tile_configure(const TileConfig& config) {
  emulated.config = config;
  std::memset(emulated.data, 0, sizeof emulated.data);
}
inline void tile_release() {
  TileConfig none;
  none.palette = 0;
  tile_configure(none);
}

template <int TILE>
void tile_zero() {
  std::memset(emulated.data[TILE], 0, sizeof emulated.data[TILE]);
}

template <int TILE>
void tile_load(const void* from, int64_t stride) {
  tile_zero<TILE>();
  for (int row = 0; row < emulated.config.rows[TILE]; ++row)
    std::memcpy(emulated.data[TILE][row], static_cast<const char*>(from) + row * stride,
                emulated.config.row_bytes[TILE]);
}

template <int TILE>
void tile_store(void* to, int64_t stride) {
  for (int row = 0; row < emulated.config.rows[TILE]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, emulated.data[TILE][row],
                emulated.config.row_bytes[TILE]);
}

// What the processor raises as an invalid instruction.
template <int SUM, int A, int B>
void check_shapes() {
  const TileConfig& c = emulated.config;
  const bool fits = c.palette == 1 && c.rows[SUM] && c.rows[SUM] == c.rows[A] && c.row_bytes[SUM] &&
                    c.row_bytes[SUM] == c.row_bytes[B] && c.row_bytes[A] == 4 * c.rows[B] &&
                    c.row_bytes[SUM] % 4 == 0;
  if (!fits) __builtin_trap();
}

// TDPBSSD: sum (int32) += A (int8, 4 a group) @ B (int8, groups of 4 rows interleaved).
template <int SUM, int A, int B>
void tile_multiply_int8() {
  check_shapes<SUM, A, B>();
  const TileConfig& c = emulated.config;
  for (int m = 0; m < c.rows[SUM]; ++m)
    for (int n = 0; n < c.row_bytes[SUM] / 4; ++n) {
      uint32_t sum;
      std::memcpy(&sum, emulated.data[SUM][m] + 4 * n, 4);
      for (int k = 0; k < c.rows[B]; ++k)
        for (int i = 0; i < 4; ++i)
          sum += static_cast<uint32_t>(static_cast<int8_t>(emulated.data[A][m][4 * k + i]) *
                                       static_cast<int8_t>(emulated.data[B][k][4 * n + i]));
      std::memcpy(emulated.data[SUM][m] + 4 * n, &sum, 4);
    }
}

// bfloat16 -> float32; what is too small to be normal counts as 0.
inline float widen(const unsigned char* from) {
  uint16_t half;
  std::memcpy(&half, from, 2);
  const uint32_t bits = (half & 0x7f80) ? uint32_t(half) << 16 : (half & 0x8000u) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float flushed(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

// TDPBF16PS: sum (float32) += A (bfloat16, 2 a group) @ B (bfloat16, pairs of rows interleaved).
// The processor adds the even and the odd products apart, then both to the sum.
template <int SUM, int A, int B>
void tile_multiply_bfloat16() {
  check_shapes<SUM, A, B>();
  const TileConfig& c = emulated.config;
  for (int m = 0; m < c.rows[SUM]; ++m)
    for (int n = 0; n < c.row_bytes[SUM] / 4; ++n) {
      float part[2] = {0, 0}, sum;
      for (int k = 0; k < c.rows[B]; ++k)
        for (int i = 0; i < 2; ++i)
          part[i] = flushed(std::fma(widen(emulated.data[A][m] + 4 * k + 2 * i),
                                     widen(emulated.data[B][k] + 4 * n + 2 * i), part[i]));
      std::memcpy(&sum, emulated.data[SUM][m] + 4 * n, 4);
      sum = flushed(flushed(sum) + flushed(part[0] + part[1]));
      std::memcpy(emulated.data[SUM][m] + 4 * n, &sum, 4);
    }
}

#else

// Assembly rather than the compiler's intrinsics: those want literal tile numbers, and do not say
// that a load reads memory.
inline void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void tile_release() { asm volatile("tilerelease" ::); }

template <int TILE>
void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"n"(TILE));
}

template <int TILE>
void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(TILE) : "memory");
}

template <int TILE>
void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(TILE) : "memory");
}

// sum (int32) += A (int8, 4 a group) @ B (int8, groups of 4 rows interleaved).
template <int SUM, int A, int B>
void tile_multiply_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(SUM), "n"(A), "n"(B));
}

// sum (float32) += A (bfloat16, 2 a group) @ B (bfloat16, pairs of rows interleaved).
template <int SUM, int A, int B>
void tile_multiply_bfloat16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(SUM), "n"(A), "n"(B));
}

#endif

}  // namespace

}  // namespace pointlib

#endif
