// Convolution in channel groups, depthwise above all: a thread sums some channels of one output row
// over the taps that feed it. There is nothing for tensor cores to do: every gathered value is used
// for few outputs.
#include "epilogue.cuh"
#include "types.cuh"

namespace pointlib {

// Calls visit(tap, input row) for the taps of an output row, in order; without a mask the row feeds
// itself.
template <class Visit>
__device__ __forceinline__ void for_each_tap(const uint32_t* __restrict__ mask,
                                             const int32_t* __restrict__ row_ptr,
                                             const int32_t* __restrict__ neighbours, int64_t words,
                                             int64_t row, Visit&& visit) {
  if (!mask) {
    visit(int64_t{0}, row);
    return;
  }
  const int32_t* next = neighbours + row_ptr[row];
  for (int64_t word = 0; word < words; ++word) {
    for (uint32_t left = mask[row * words + word]; left != 0; left &= left - 1) {
      visit(word * 32 + __ffs(static_cast<int>(left)) - 1, static_cast<int64_t>(*next++));
    }
  }
}

// weight (K, group_in, c_out), group_in = c_in / groups; out channel c reads the group_in inputs of
// its group.
template <class T>
__global__ void __launch_bounds__(256)
    grouped_conv(const T* __restrict__ feats, const T* __restrict__ weight,
                 const T* __restrict__ bias, const uint32_t* __restrict__ mask,
                 const int32_t* __restrict__ row_ptr, const int32_t* __restrict__ neighbours,
                 T* __restrict__ out, int64_t rows, int64_t words, int64_t c_in, int64_t c_out,
                 int64_t groups) {
  const int64_t at = global_thread();
  if (at >= rows * c_out) return;
  const int64_t row = at / c_out, column = at % c_out;
  const int64_t group_in = c_in / groups, source = column / (c_out / groups) * group_in;
  accumulator<T> sum = 0;
  for_each_tap(mask, row_ptr, neighbours, words, row, [&](int64_t tap, int64_t input) {
    const T* from = feats + input * c_in + source;
    const T* by = weight + tap * group_in * c_out + column;
#pragma unroll 4
    for (int64_t i = 0; i < group_in; ++i) sum += widen(from[i]) * widen(by[i * c_out]);
  });
  if (bias) sum += widen(bias[column]);
  out[at] = narrow<T>(sum);
}

// The same with one input and one output channel a group; COLUMNS channels a thread.
template <class T, int COLUMNS>
__global__ void __launch_bounds__(256)
    depthwise_conv(const T* __restrict__ feats, const T* __restrict__ weight,
                   const T* __restrict__ bias, const uint32_t* __restrict__ mask,
                   const int32_t* __restrict__ row_ptr, const int32_t* __restrict__ neighbours,
                   T* __restrict__ out, int64_t rows, int64_t words, int64_t channels) {
  const int64_t pieces = channels / COLUMNS, at = global_thread();
  if (at >= rows * pieces) return;
  const int64_t row = at / pieces, column = at % pieces;
  const auto* input_pieces = reinterpret_cast<const Vector<T, COLUMNS>*>(feats);
  const auto* weight_pieces = reinterpret_cast<const Vector<T, COLUMNS>*>(weight);
  accumulator<T> sums[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) sums[i] = 0;
  for_each_tap(mask, row_ptr, neighbours, words, row, [&](int64_t tap, int64_t input) {
    const Vector<T, COLUMNS> from = input_pieces[input * pieces + column];
    const Vector<T, COLUMNS> by = weight_pieces[tap * pieces + column];
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) sums[i] += widen(from.at[i]) * widen(by.at[i]);
  });
  Vector<T, COLUMNS> result;
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    if (bias) sums[i] += widen(bias[column * COLUMNS + i]);
    result.at[i] = narrow<T>(sums[i]);
  }
  reinterpret_cast<Vector<T, COLUMNS>*>(out)[at] = result;
}

}  // namespace pointlib
