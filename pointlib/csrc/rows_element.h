// The types of features, and their rounding. Included by files of every instruction set, so all
// functions are static: each file keeps its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace pointlib {

// ELEMENTS in pointlib/ops/_cpu/scatter.py; the first two as DType in kernels.h.
enum class Element : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, FLOAT64 = 3 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

static inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
static inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static inline float widen(float value) { return value; }
static inline double widen(double value) { return value; }
static inline float widen(BFloat16 value) { return float_of(uint32_t(value.bits) << 16); }
static inline float widen(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // The multiplication moves the exponent and makes subnormal numbers normal, exactly.
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

// Rounds to nearest, ties to even; a NaN stays one.
static inline void narrow(float value, float* to) { *to = value; }
static inline void narrow(double value, double* to) { *to = value; }
static inline void narrow(double value, float* to) { *to = static_cast<float>(value); }
static inline void narrow(float value, BFloat16* to) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to->bits = static_cast<uint16_t>(value != value ? bits >> 16 | 0x40 : rounded);
}
static inline void narrow(float value, Float16* to) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000) {
    half = 0x7e00;
  } else if (rest >= 0x477ff000) {  // from 65520 on, infinity
    half = 0x7c00;
  } else if (rest < 0x38800000) {  // below 2^-14 the addition rounds, to a multiple of 2^-24
    half = bits_of(float_of(rest) + 0.5f) - bits_of(0.5f);
  } else {
    half = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}
template <typename T>
static inline void narrow(double value, T* to) {
  narrow(static_cast<float>(value), to);
}

// What a type is summed in.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Feature rows and the pairs that bring them to output rows.
struct RowPairs {
  const void* src;  // (num_in, channels)
  int64_t channels;
  const void* weights;  // by pair, in Sum of the element, or null for 1
};

// The loops over rows of one element type. Totals are rows of Sum, or double where that is wide.
struct RowKernels {
  // total += weights[pair[j]] * src[source[j]] for j in [0, count).
  void (*sum)(const RowPairs& pairs, const int32_t* source, const int32_t* pair, int64_t count,
              void* total);
  void (*sum_wide)(const RowPairs& pairs, const int32_t* source, const int32_t* pair, int64_t count,
                   double* total);
  // totals[out[p] - first] += weights[p] * src[p / each] for every p whose output is one of `rows`
  // rows from `first`.
  void (*sum_in_place)(const RowPairs& pairs, const void* out, int64_t index_bytes, int64_t each,
                       int64_t count, int64_t first, int64_t rows, void* totals);
  // Of best and src[source[j]], the larger value and its row: the lower row at a tie, a NaN before
  // any number, anything before row -1.
  void (*max)(const RowPairs& pairs, const int32_t* source, int64_t count, void* best,
              int64_t* row);
  void (*max_in_place)(const RowPairs& pairs, const void* out, int64_t index_bytes, int64_t count,
                       int64_t first, int64_t rows, void* best, int64_t* row);
  // Joins two (best, row).
  void (*max_merge)(const void* best, const int64_t* row, int64_t channels, void* into,
                    int64_t* into_row);
  // out[n] = sum over k of weights[n, k] * src[index[n, k]].
  void (*interpolate)(const RowPairs& pairs, const int64_t* index, int64_t points, int64_t corners,
                      void* total, void* out);
  void (*narrow)(const void* total, int64_t count, void* out);

  // Batch norm. sum[c] = sum of feats, centred[c] = sum of (feats - sum / rows)^2.
  void (*moments)(const void* feats, int64_t rows, int64_t channels, void* sum, void* centred);
  // out = activation(feats * scale + shift + residual); residual may be null.
  void (*affine)(const void* feats, int64_t rows, int64_t channels, const void* scale,
                 const void* shift, const void* residual, double negative_slope, void* out);
  // grad is taken where the activation's output is above 0, and else times its slope; out may be
  // null for no activation. sum[c] = sum of grad, product[c] = sum of grad * (feats - mean).
  void (*grad_moments)(const void* grad, const void* out, double negative_slope, const void* feats,
                       int64_t rows, int64_t channels, const void* mean, void* sum, void* product);
  // grad_feats = grad * scale + (feats - mean) * slope + shift, and grad_residual = grad unless
  // null.
  void (*grad_affine)(const void* grad, const void* out, double negative_slope, const void* feats,
                      int64_t rows, int64_t channels, const void* mean, const void* scale,
                      const void* slope, const void* shift, void* grad_feats, void* grad_residual);
};

}  // namespace pointlib
