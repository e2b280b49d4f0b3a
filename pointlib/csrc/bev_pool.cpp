// Bird's-eye pooling of image features lifted by depth: the products of depth and context are
// added up cell by cell and never stored. Each cell, and in the gradient each pixel, has one owner
// and one order of summation whatever the number of threads.
#include <algorithm>

#include "engine.h"
#include "rows.h"

using namespace pointlib;

namespace {

// Frustum points (images, depths, area): point p sees pixel p / (depths * area) * area + p % area.
struct Frustum {
  int64_t images, depths, area;
  int64_t points() const { return images * depths * area; }
  int64_t pixels() const { return images * area; }
};

constexpr int64_t CHUNK = 256;  // points whose pixels are worked out at once
constexpr int64_t BLOCK = 64;   // cells that a thread takes at once

struct Pool {
  const RowKernels& kernels;
  RowPairs rows;
  Frustum frustum;
  int64_t total_bytes;

  // The sum of one cell, in `total` and then rounded to `out`.
  void operator()(const int32_t* order, int64_t count, char* total, void* out) const {
    int32_t pixel[CHUNK];
    std::fill_n(total, total_bytes, char(0));
    for (int64_t from = 0; from < count; from += CHUNK) {
      const int64_t some = std::min(CHUNK, count - from);
      for (int64_t j = 0; j < some; ++j) {
        const int64_t p = order[from + j], image = p / (frustum.depths * frustum.area);
        pixel[j] = static_cast<int32_t>(image * frustum.area + p % frustum.area);
      }
      kernels.sum(rows, pixel, order + from, some, total);
    }
    kernels.narrow(total, rows.channels, out);
  }
};

// Whether the intervals follow each other from 0 on and name points.
bool intervals_in_range(const int32_t* order, const int32_t* interval_ptr, int64_t num_cells,
                        int64_t points) {
  if (interval_ptr[0] != 0 || interval_ptr[num_cells] > points) return false;
  for (int64_t cell = 0; cell < num_cells; ++cell)
    if (interval_ptr[cell] > interval_ptr[cell + 1]) return false;
  int32_t low = 0, high = -1;
  for (int64_t j = 0; j < interval_ptr[num_cells]; ++j) {
    low = std::min(low, order[j]);
    high = std::max(high, order[j]);
  }
  return low >= 0 && high < points;
}

template <typename T>
T dot(const T* a, const T* b, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) sum += a[c] * b[c];
  return sum;
}

template <typename T>
void depth_gradients(const Frustum& frustum, int64_t channels, const T* grad, const T* depth,
                     const T* context, const int64_t* cells, T* grad_depth, T* grad_context,
                     int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64) if (threads > 1)
  for (int64_t pixel = 0; pixel < frustum.pixels(); ++pixel) {
    const int64_t image = pixel / frustum.area, at = pixel % frustum.area;
    const T* seen = context + pixel * channels;
    T* __restrict sum = grad_context + pixel * channels;
    std::fill_n(sum, channels, T(0));
    for (int64_t d = 0; d < frustum.depths; ++d) {
      const int64_t p = (image * frustum.depths + d) * frustum.area + at;
      grad_depth[p] = 0;
      if (cells[p] < 0) continue;
      const T* row = grad + cells[p] * channels;
      const T weight = depth[p];
      grad_depth[p] = dot(row, seen, channels);
      for (int64_t c = 0; c < channels; ++c) sum[c] += weight * row[c];
    }
  }
}

}  // namespace

// Points by cell, in their order within one and those of cell -1 last: order (points,) and
// interval_ptr (num_cells + 1,). Returns 1 where a cell is out of range.
POINTLIB_API int64_t pl_bev_pool_intervals(const int64_t* cells, int64_t points, int64_t num_cells,
                                           int32_t* order, int32_t* interval_ptr, int64_t threads) {
  return guarded([&]() -> int64_t {
    const Index by_point{nullptr, 8, 1}, by_cell{cells, 8, 1};
    if (!rows_in_range(by_cell, points, num_cells, threads)) return 1;
    Segments s;
    s.build(by_point, by_cell, points, points, num_cells, false, threads);
    std::copy_n(s.starts.get(), num_cells + 1, interval_ptr);
    int32_t at = s.starts[num_cells];
    std::copy_n(s.source.get(), at, order);
    for (int64_t p = 0; p < points; ++p)
      if (cells[p] < 0) order[at++] = static_cast<int32_t>(p);
    return 0;
  });
}

// out[cell] = sum over the points of the cell of depth[p] * context[pixel(p)]. Context is
// (images * area, channels), depth (images, depths, area) in the type that context is summed in.
// Returns 1 where order or interval_ptr is out of range.
POINTLIB_API int64_t pl_bev_pool_depth(int64_t element, const void* context, int64_t channels,
                                       const void* depth, int64_t images, int64_t depths,
                                       int64_t area, const int32_t* order,
                                       const int32_t* interval_ptr, int64_t num_cells, void* out,
                                       int64_t threads) {
  return guarded([&]() -> int64_t {
    const Frustum frustum{images, depths, area};
    if (!intervals_in_range(order, interval_ptr, num_cells, frustum.points())) return 1;
    int64_t bytes = 0, sum_bytes = 0;
    with_element(element, [&](auto* type) {
      bytes = sizeof(*type);
      sum_bytes = sizeof(Sum<std::remove_pointer_t<decltype(type)>>);
    });
    prefer_large_pages(out, num_cells * channels * bytes);
    const int64_t total_bytes = channels * sum_bytes, stride = (total_bytes + 63) / 64 * 64;
    const Pool pool{row_kernels(element), {context, channels, depth}, frustum, total_bytes};
    const int used = threads_for((frustum.points() + num_cells) * channels, threads);
    const auto totals = scratch<char>(used * stride);
#pragma omp parallel for num_threads(used) schedule(static, 1) if (used > 1)
    for (int64_t slot = 0; slot < used; ++slot)
      for (int64_t first = slot * BLOCK; first < num_cells; first += used * BLOCK)
        for (int64_t cell = first; cell < std::min(first + BLOCK, num_cells); ++cell)
          pool(order + interval_ptr[cell], interval_ptr[cell + 1] - interval_ptr[cell],
               totals.get() + slot * stride, static_cast<char*>(out) + cell * channels * bytes);
    return 0;
  });
}

// Gradients of pl_bev_pool_depth, in float32 or, where `wide`, in float64: cells holds the
// cell of each point, or -1. Returns 1 where a cell is out of range.
POINTLIB_API int64_t pl_bev_pool_depth_grad(int64_t wide, const void* grad, int64_t num_cells,
                                            int64_t channels, const void* depth,
                                            const void* context, const int64_t* cells,
                                            int64_t images, int64_t depths, int64_t area,
                                            void* grad_depth, void* grad_context, int64_t threads) {
  return guarded([&]() -> int64_t {
    const Frustum frustum{images, depths, area};
    if (!rows_in_range({cells, 8, 1}, frustum.points(), num_cells, threads)) return 1;
    const int used = threads_for(frustum.points() * channels, threads);
    const auto run = [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      depth_gradients(frustum, channels, static_cast<const T*>(grad), static_cast<const T*>(depth),
                      static_cast<const T*>(context), cells, static_cast<T*>(grad_depth),
                      static_cast<T*>(grad_context), used);
    };
    if (wide)
      run(static_cast<double*>(nullptr));
    else
      run(static_cast<float*>(nullptr));
    return 0;
  });
}
