// Gathers of feature rows and elements, their weighted form (devoxelization), and the transpose of
// the gather of elements.
#include <algorithm>

#include "engine.h"
#include "rows.h"

using namespace pointlib;

namespace {

template <typename T>
void gather_elements(const T* src, const int64_t* index, int64_t rows, int64_t channels, T* out,
                     int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t row = index[i * channels + c];
      out[i * channels + c] = row < 0 ? T{} : src[row * channels + c];
    }
}

// Threads share out the channels, in cache lines, and then the output rows; each passes over all
// elements of its channels.
template <typename T>
void scatter_elements(const T* src, const int64_t* index, int64_t rows, int64_t channels,
                      Sum<T>* total, int64_t num_out, int threads) {
  constexpr int64_t LINE = 16;
  const int64_t columns = std::min<int64_t>(threads, (channels + LINE - 1) / LINE);
  const int64_t ranges = threads / columns;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t part = 0; part < columns * ranges; ++part) {
    const int64_t column = part % columns, range = part / columns;
    const int64_t from = channels * column / columns, to = channels * (column + 1) / columns;
    const int64_t low = num_out * range / ranges, high = num_out * (range + 1) / ranges;
    for (int64_t o = low; o < high; ++o)
      std::fill(total + o * channels + from, total + o * channels + to, Sum<T>(0));
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = from; c < to; ++c) {
        const int64_t row = index[i * channels + c];
        if (row >= low && row < high) total[row * channels + c] += widen(src[i * channels + c]);
      }
  }
}

}  // namespace

// out[i] = src[index[i]], zeros where the index is -1. Returns 1 where an index is out of range, as
// do the others of this file.
POINTLIB_API int64_t pl_gather_rows(const void* src, int64_t num_in, int64_t row_bytes,
                                    const int64_t* index, int64_t rows, void* out,
                                    int64_t threads) {
  return guarded([&]() -> int64_t {
    if (!rows_in_range({index, 8, 1}, rows, num_in, threads)) return 1;
    if (rows * row_bytes == 0) return 0;
    prefer_large_pages(out, rows * row_bytes);
    const int used = threads_for(rows * row_bytes / 4, threads);
    const char* from = static_cast<const char*>(src);
    char* to = static_cast<char*>(out);
#pragma omp parallel for num_threads(used) schedule(static) if (used > 1)
    for (int64_t i = 0; i < rows; ++i) {
      if (index[i] < 0)
        std::memset(to + i * row_bytes, 0, row_bytes);
      else
        std::memcpy(to + i * row_bytes, from + index[i] * row_bytes, row_bytes);
    }
    return 0;
  });
}

// out[i, c] = src[index[i, c], c], zero where the index is -1.
POINTLIB_API int64_t pl_gather_elements(int64_t element, const void* src, int64_t num_in,
                                        int64_t channels, const int64_t* index, int64_t rows,
                                        void* out, int64_t threads) {
  return guarded([&]() -> int64_t {
    if (!rows_in_range({index, 8, 1}, rows * channels, num_in, threads)) return 1;
    const int used = threads_for(rows * channels, threads);
    with_element(element, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      prefer_large_pages(out, rows * channels * int64_t(sizeof(T)));
      gather_elements(static_cast<const T*>(src), index, rows, channels, static_cast<T*>(out),
                      used);
    });
    return 0;
  });
}

// out[index[i, c], c] += src[i, c] in the order of i, nothing where the index is -1.
POINTLIB_API int64_t pl_scatter_elements(int64_t element, const void* src, int64_t rows,
                                         int64_t channels, const int64_t* index, void* out,
                                         int64_t num_out, int64_t threads) {
  return guarded([&]() -> int64_t {
    if (!rows_in_range({index, 8, 1}, rows * channels, num_out, threads)) return 1;
    const int64_t size = num_out * channels;
    if (size == 0) return 0;
    const int used = threads_for(rows * channels + size, threads);
    with_element(element, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      T* to = static_cast<T*>(out);
      prefer_large_pages(out, size * int64_t(sizeof(T)));
      if constexpr (std::is_same_v<T, Sum<T>>) {
        scatter_elements(static_cast<const T*>(src), index, rows, channels, to, num_out, used);
      } else {
        const auto total = scratch<float>(size);
        scatter_elements(static_cast<const T*>(src), index, rows, channels, total.get(), num_out,
                         used);
#pragma omp parallel for num_threads(used) schedule(static) if (used > 1)
        for (int64_t i = 0; i < size; ++i) narrow(total[i], to + i);
      }
    });
    return 0;
  });
}

// out[n] = sum over k of weights[n, k] * src[index[n, k]]; weights are float64 where src is and
// float32 elsewhere.
POINTLIB_API int64_t pl_devoxelize(int64_t element, const void* src, int64_t num_in,
                                   int64_t channels, const int64_t* index, const void* weights,
                                   int64_t points, int64_t corners, void* out, int64_t threads) {
  return guarded([&]() -> int64_t {
    if (!rows_in_range({index, 8, 1}, points * corners, num_in, threads)) return 1;
    const int used = threads_for(points * (corners + channels), threads);
    const RowKernels& kernels = row_kernels(element);
    with_element(element, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      prefer_large_pages(out, points * channels * int64_t(sizeof(T)));
      const int64_t stride = (channels * int64_t(sizeof(Sum<T>)) + 63) / 64 * 64;
      const auto totals = scratch<char>(used * stride);
#pragma omp parallel for num_threads(used) schedule(static, 1) if (used > 1)
      for (int64_t part = 0; part < used; ++part) {
        const int64_t from = points * part / used, to = points * (part + 1) / used;
        const RowPairs pairs = {src, channels,
                                static_cast<const Sum<T>*>(weights) + from * corners};
        kernels.interpolate(pairs, index + from * corners, to - from, corners,
                            totals.get() + part * stride, static_cast<T*>(out) + from * channels);
      }
    });
    return 0;
  });
}
