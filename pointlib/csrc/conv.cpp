// Sparse convolution: walks tiles of output rows and calls the kernels of the chosen set.
#include <omp.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "engine.h"
#include "kernels.h"
#include "memory.h"

using namespace pointlib;

namespace {

constexpr int64_t MAX_SOURCES = 2;

// Mirrors ConvArguments in pointlib/ops/_cpu/sparse_conv.py.
struct ConvArguments {
  int64_t dtype;
  const void* feats[MAX_SOURCES];   // (num_in, c_in) each; the second is null where there is one
  const void* packed[MAX_SOURCES];  // weights of each, from pl_conv_pack
  int64_t c_in[MAX_SOURCES];
  const int32_t* in_index;
  const int32_t* out_index;
  const int64_t* offset_ptr;  // null: one tap, and row i feeds row i
  int64_t taps, num_out, c_out;
  const float* scale;
  const float* shift;
  const void* residual;
  double negative_slope;
  void* out;
  int64_t tile_rows;
  int64_t threads;
};

const ConvKernels& kernels_of(int64_t dtype) {
  if (dtype == FLOAT32) return kernels().float32;
  if (dtype == BFLOAT16 && kernels().bfloat16) return *kernels().bfloat16;
  throw std::runtime_error("dtype must be one that the instruction set has products for");
}

int64_t element_bytes(int64_t dtype) { return dtype == FLOAT32 ? 4 : 2; }

int64_t padded(int64_t channels) {
  const int64_t width = kernels().width;
  return (channels + width - 1) / width * width;
}

// Pairs whose output rows ascend inside every tap; a sorted copy where the caller's do not.
struct OrderedPairs {
  const int32_t* in;
  const int32_t* out;
  Scratch<int32_t> storage;
  std::vector<int32_t> count;  // 0, 1, 2 ... in place of pairs, where row i feeds row i

  OrderedPairs(const ConvArguments& a) : in(a.in_index), out(a.out_index) {
    bool ascending = true;
    if (!a.offset_ptr) {
      count.resize(std::min(a.tile_rows, a.num_out));
      std::iota(count.begin(), count.end(), 0);
      return;
    }
#pragma omp parallel for num_threads(a.threads) reduction(&& : ascending) if (a.threads > 1)
    for (int64_t tap = 0; tap < a.taps; ++tap) {
      int descents = 0;
      for (int64_t p = a.offset_ptr[tap] + 1; p < a.offset_ptr[tap + 1]; ++p)
        descents += out[p] < out[p - 1];
      ascending = ascending && descents == 0;
    }
    if (!ascending) sort(a);
  }

  void sort(const ConvArguments& a) {
    const int64_t count = a.offset_ptr[a.taps];
    const auto keys = scratch<uint64_t>(count);  // output row, then input row
    storage = scratch<int32_t>(2 * count);
    int32_t *sorted_in = storage.get(), *sorted_out = sorted_in + count;
#pragma omp parallel for schedule(dynamic) num_threads(a.threads) if (a.threads > 1)
    for (int64_t tap = 0; tap < a.taps; ++tap) {
      const int64_t from = a.offset_ptr[tap], to = a.offset_ptr[tap + 1];
      for (int64_t p = from; p < to; ++p)
        keys[p] = uint64_t(a.out_index[p]) << 32 | uint32_t(a.in_index[p]);
      std::sort(keys.get() + from, keys.get() + to);
      for (int64_t p = from; p < to; ++p) {
        sorted_in[p] = static_cast<int32_t>(keys[p]);
        sorted_out[p] = static_cast<int32_t>(keys[p] >> 32);
      }
    }
    in = sorted_in;
    out = sorted_out;
  }
};

Epilogue epilogue_of(const ConvArguments& a) {
  return {a.scale, a.shift, a.residual, static_cast<float>(a.negative_slope)};
}

// `first_row` is what the pairs' input rows count from.
void multiply(const ConvArguments& a, const ConvKernels& k, int64_t tap, const Pairs& pairs,
              float* sums, int64_t first_row) {
  for (int64_t s = 0; s < MAX_SOURCES && a.feats[s]; ++s) {
    const char* panels =
        static_cast<const char*>(a.packed[s]) + tap * k.packed_bytes(a.c_in[s], a.c_out);
    const char* rows = static_cast<const char*>(a.feats[s]);
    rows += first_row * a.c_in[s] * element_bytes(a.dtype);
    k.multiply(rows, a.c_in[s], pairs, panels, a.c_out, sums);
  }
}

// Calls visit(tap, pairs, first_row) for the pairs of every tap whose outputs lie in [first, last).
template <typename Visit>
void each_tap(const ConvArguments& a, const OrderedPairs& ordered, int64_t first, int64_t last,
              Visit visit) {
  const int32_t base = static_cast<int32_t>(first);
  if (!a.offset_ptr) {
    visit(0, Pairs{ordered.count.data(), ordered.count.data(), last - first, 0}, first);
    return;
  }
  for (int64_t tap = 0; tap < a.taps; ++tap) {
    const int32_t* end = ordered.out + a.offset_ptr[tap + 1];
    const int32_t* from = std::lower_bound(ordered.out + a.offset_ptr[tap], end, first);
    const int32_t* to = std::lower_bound(from, std::min(end, from + (last - first)), last);
    if (from != to) visit(tap, Pairs{ordered.in + (from - ordered.out), from, to - from, base}, 0);
  }
}

// Each thread takes tiles of output rows and sums all their taps in cache.
void convolve(const ConvArguments& a, const ConvKernels& k, const OrderedPairs& ordered) {
  const int64_t tiles = (a.num_out + a.tile_rows - 1) / a.tile_rows, width = padded(a.c_out);
  const int64_t size = std::min(a.tile_rows, a.num_out) * width;
  const auto all_sums = scratch<float>(a.threads * size);
  const Epilogue epilogue = epilogue_of(a);
#pragma omp parallel num_threads(a.threads) if (a.threads > 1)
  {
    if (k.enter) k.enter();
    float* sums = all_sums.get() + omp_get_thread_num() * size;
#pragma omp for schedule(dynamic)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = tile * a.tile_rows, last = std::min(first + a.tile_rows, a.num_out);
      std::fill_n(sums, (last - first) * width, 0.0f);
      each_tap(a, ordered, first, last, [&](int64_t tap, const Pairs& pairs, int64_t first_row) {
        multiply(a, k, tap, pairs, sums, first_row);
      });
      k.finish(sums, last - first, a.c_out, epilogue, first, a.out);
    }
    if (k.leave) k.leave();
  }
}

}  // namespace

// Whether the chosen set multiplies this type.
POINTLIB_API int64_t pl_conv_supports(int64_t dtype) {
  return dtype == FLOAT32 || (dtype == BFLOAT16 && kernels().bfloat16);
}

// Bytes of `taps` packed taps.
POINTLIB_API int64_t pl_conv_packed_bytes(int64_t dtype, int64_t taps, int64_t c_in,
                                          int64_t c_out) {
  return guarded([&]() -> int64_t { return taps * kernels_of(dtype).packed_bytes(c_in, c_out); });
}

// weight (taps, c_in, c_out), of either type and with any strides, in elements -> panels of the
// chosen set.
POINTLIB_API int64_t pl_conv_pack(int64_t dtype, const void* weight, int64_t weight_dtype,
                                  int64_t stride_tap, int64_t stride_in, int64_t stride_out,
                                  int64_t taps, int64_t c_in, int64_t c_out, void* packed,
                                  int64_t threads) {
  return guarded([&]() -> int64_t {
    const ConvKernels& k = kernels_of(dtype);
    const int64_t bytes = k.packed_bytes(c_in, c_out);
    prefer_large_pages(packed, taps * bytes);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t tap = 0; tap < taps; ++tap) {
      const char* from = static_cast<const char*>(weight);
      from += tap * stride_tap * element_bytes(weight_dtype);
      k.pack({from, weight_dtype, stride_in, stride_out}, c_in, c_out,
             static_cast<char*>(packed) + tap * bytes);
    }
    return 0;
  });
}

POINTLIB_API int64_t pl_conv(const ConvArguments* arguments) {
  return guarded([&]() -> int64_t {
    const ConvArguments& a = *arguments;
    const ConvKernels& k = kernels_of(a.dtype);
    prefer_large_pages(a.out, a.num_out * a.c_out * element_bytes(a.dtype));
    convolve(a, k, OrderedPairs(a));
    return 0;
  });
}

// grad_weight (taps, c_in, c_out) float32 = sum over each tap's pairs of feats[in]^T grad[out].
// Pairs are cut into pieces whose size depends on the map alone, and their sums are added in order:
// any number of threads gives the same bits.
POINTLIB_API int64_t pl_conv_grad_weight(int64_t dtype, const void* feats, int64_t rows,
                                         int64_t c_in, const void* grad, int64_t c_out,
                                         const int32_t* in_index, const int32_t* out_index,
                                         const int64_t* offset_ptr, int64_t taps,
                                         float* grad_weight, int64_t threads) {
  return guarded([&]() -> int64_t {
    const ConvKernels& k = kernels_of(dtype);
    const int64_t width = padded(c_out), size = c_in * width;
    const int64_t all_rows[] = {0, rows};
    const bool mapped = offset_ptr != nullptr;
    if (!mapped) offset_ptr = all_rows;
    const int64_t most = std::max<int64_t>(8192, offset_ptr[taps] / 64);
    std::vector<int32_t> count_up(mapped ? 0 : std::min(most, rows));
    std::iota(count_up.begin(), count_up.end(), 0);
    struct Piece {
      int64_t tap, from, to;
    };
    std::vector<Piece> pieces;
    std::vector<int64_t> first_piece;
    for (int64_t tap = 0; tap < taps; ++tap) {
      first_piece.push_back(pieces.size());
      for (int64_t from = offset_ptr[tap]; from < offset_ptr[tap + 1]; from += most)
        pieces.push_back({tap, from, std::min(from + most, offset_ptr[tap + 1])});
    }
    first_piece.push_back(pieces.size());
    const int64_t num_pieces = pieces.size();
    const auto partial = scratch<float>(num_pieces * size);
    const int64_t work_bytes = k.outer_bytes(c_in, c_out);
    const auto all_work = scratch<char>(threads * work_bytes);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      if (k.enter) k.enter();
      char* work = all_work.get() + omp_get_thread_num() * work_bytes;
#pragma omp for schedule(dynamic)
      for (int64_t p = 0; p < num_pieces; ++p) {
        const auto [tap, from, to] = pieces[p];
        std::fill_n(partial.get() + p * size, size, 0.0f);
        float* products = partial.get() + p * size;
        if (mapped) {
          const Pairs pairs = {in_index + from, out_index + from, to - from, 0};
          k.outer(feats, c_in, grad, c_out, pairs, products, work);
        } else {
          const Pairs pairs = {count_up.data(), count_up.data(), to - from, 0};
          const int64_t element = element_bytes(dtype);
          k.outer(static_cast<const char*>(feats) + from * c_in * element, c_in,
                  static_cast<const char*>(grad) + from * c_out * element, c_out, pairs, products,
                  work);
        }
      }
      if (k.leave) k.leave();
#pragma omp for schedule(dynamic)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < c_in; ++i) {
          float* to = grad_weight + (tap * c_in + i) * c_out;
          std::fill_n(to, c_out, 0.0f);
          for (int64_t p = first_piece[tap]; p < first_piece[tap + 1]; ++p)
            for (int64_t o = 0; o < c_out; ++o) to[o] += partial[p * size + i * width + o];
        }
    }
    return 0;
  });
}
