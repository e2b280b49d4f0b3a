// Loops over rows of features, compiled once for each instruction set as kernels.cpp is; the
// compiler turns the loops over channels into vectors.
#include "rows_element.h"

namespace pointlib::POINTLIB_SET {

namespace {

template <typename T>
const T* row_of(const RowPairs& pairs, int64_t row) {
  return static_cast<const T*>(pairs.src) + row * pairs.channels;
}

template <typename T, typename Total>
inline void add(const T* __restrict row, int64_t channels, Total* __restrict total) {
  for (int64_t c = 0; c < channels; ++c) total[c] += widen(row[c]);
}
template <typename T, typename Total>
inline void add(const T* __restrict row, int64_t channels, Sum<T> weight, Total* __restrict total) {
  if (weight == 0) return;
  for (int64_t c = 0; c < channels; ++c) total[c] += weight * widen(row[c]);
}

template <typename T, typename Total>
void sum_into(const RowPairs& pairs, const int32_t* source, const int32_t* pair, int64_t count,
              Total* total) {
  const Sum<T>* weights = static_cast<const Sum<T>*>(pairs.weights);
  for (int64_t j = 0; j < count; ++j) {
    const T* row = row_of<T>(pairs, source[j]);
    if (weights)
      add(row, pairs.channels, weights[pair[j]], total);
    else
      add(row, pairs.channels, total);
  }
}
template <typename T>
void sum(const RowPairs& pairs, const int32_t* source, const int32_t* pair, int64_t count,
         void* total) {
  sum_into<T>(pairs, source, pair, count, static_cast<Sum<T>*>(total));
}
template <typename T>
void sum_wide(const RowPairs& pairs, const int32_t* source, const int32_t* pair, int64_t count,
              double* total) {
  sum_into<T>(pairs, source, pair, count, total);
}

template <typename T, typename I>
void sum_indexed(const RowPairs& pairs, const I* out, int64_t each, int64_t count, int64_t first,
                 int64_t rows, Sum<T>* totals) {
  const Sum<T>* weights = static_cast<const Sum<T>*>(pairs.weights);
  for (int64_t p = 0; p < count; ++p) {
    const int64_t o = int64_t(out[p]) - first;
    if (o < 0 || o >= rows) continue;
    const T* row = row_of<T>(pairs, each == 1 ? p : p / each);
    if (weights)
      add(row, pairs.channels, weights[p], totals + o * pairs.channels);
    else
      add(row, pairs.channels, totals + o * pairs.channels);
  }
}
template <typename T>
void sum_in_place(const RowPairs& pairs, const void* out, int64_t index_bytes, int64_t each,
                  int64_t count, int64_t first, int64_t rows, void* totals) {
  Sum<T>* to = static_cast<Sum<T>*>(totals);
  if (index_bytes == 4)
    sum_indexed<T>(pairs, static_cast<const int32_t*>(out), each, count, first, rows, to);
  else
    sum_indexed<T>(pairs, static_cast<const int64_t*>(out), each, count, first, rows, to);
}

template <typename Value>
inline void take(Value value, int64_t row, Value& best, int64_t& best_row) {
  const Value old = best;
  const bool nan = value != value, old_nan = old != old;
  const bool tie = (value == old) | (nan & old_nan);
  const bool better = (best_row < 0) | (value > old) | (nan & !old_nan) | (tie & (row < best_row));
  best = better ? value : old;
  best_row = better ? row : best_row;
}
template <typename T>
inline void take_row(const T* __restrict row, int64_t channels, int64_t number,
                     Sum<T>* __restrict best, int64_t* __restrict best_row) {
  for (int64_t c = 0; c < channels; ++c) take(widen(row[c]), number, best[c], best_row[c]);
}

template <typename T>
void max(const RowPairs& pairs, const int32_t* source, int64_t count, void* best, int64_t* row) {
  for (int64_t j = 0; j < count; ++j)
    take_row(row_of<T>(pairs, source[j]), pairs.channels, source[j], static_cast<Sum<T>*>(best),
             row);
}

template <typename T, typename I>
void max_indexed(const RowPairs& pairs, const I* out, int64_t count, int64_t first, int64_t rows,
                 Sum<T>* best, int64_t* row) {
  for (int64_t p = 0; p < count; ++p) {
    const int64_t o = int64_t(out[p]) - first;
    if (o >= 0 && o < rows)
      take_row(row_of<T>(pairs, p), pairs.channels, p, best + o * pairs.channels,
               row + o * pairs.channels);
  }
}
template <typename T>
void max_in_place(const RowPairs& pairs, const void* out, int64_t index_bytes, int64_t count,
                  int64_t first, int64_t rows, void* best, int64_t* row) {
  Sum<T>* to = static_cast<Sum<T>*>(best);
  if (index_bytes == 4)
    max_indexed<T>(pairs, static_cast<const int32_t*>(out), count, first, rows, to, row);
  else
    max_indexed<T>(pairs, static_cast<const int64_t*>(out), count, first, rows, to, row);
}

template <typename T>
void max_merge(const void* best, const int64_t* row, int64_t channels, void* into,
               int64_t* into_row) {
  for (int64_t c = 0; c < channels; ++c)
    take(static_cast<const Sum<T>*>(best)[c], row[c], static_cast<Sum<T>*>(into)[c], into_row[c]);
}

template <typename T>
void narrow_all(const void* total, int64_t count, void* out) {
  const Sum<T>* __restrict from = static_cast<const Sum<T>*>(total);
  T* __restrict to = static_cast<T*>(out);
  for (int64_t i = 0; i < count; ++i) narrow(from[i], to + i);
}

template <typename T>
void interpolate(const RowPairs& pairs, const int64_t* index, int64_t points, int64_t corners,
                 void* total, void* out) {
  const Sum<T>* weights = static_cast<const Sum<T>*>(pairs.weights);
  Sum<T>* sums = static_cast<Sum<T>*>(total);
  for (int64_t n = 0; n < points; ++n) {
    for (int64_t c = 0; c < pairs.channels; ++c) sums[c] = 0;
    for (int64_t p = n * corners; p < (n + 1) * corners; ++p)
      if (index[p] >= 0) add(row_of<T>(pairs, index[p]), pairs.channels, weights[p], sums);
    narrow_all<T>(sums, pairs.channels, static_cast<T*>(out) + n * pairs.channels);
  }
}

// Adds up term(row, channel) over rows, four of them at a time.
template <typename S, typename Term>
inline void add_up(int64_t rows, int64_t channels, S* __restrict sum, Term term) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    for (int64_t c = 0; c < channels; ++c)
      sum[c] += (term(r, c) + term(r + 1, c)) + (term(r + 2, c) + term(r + 3, c));
  for (; r < rows; ++r)
    for (int64_t c = 0; c < channels; ++c) sum[c] += term(r, c);
}

template <typename T>
void moments(const void* feats, int64_t rows, int64_t channels, void* sum, void* centred) {
  const T* __restrict x = static_cast<const T*>(feats);
  Sum<T>* __restrict total = static_cast<Sum<T>*>(sum);
  add_up(rows, channels, total, [=](int64_t r, int64_t c) { return widen(x[r * channels + c]); });
  const Sum<T> share = Sum<T>(1) / static_cast<Sum<T>>(rows);
  add_up(rows, channels, static_cast<Sum<T>*>(centred), [=](int64_t r, int64_t c) {
    const Sum<T> distance = widen(x[r * channels + c]) - total[c] * share;
    return distance * distance;
  });
}

template <typename T>
void affine(const void* feats, int64_t rows, int64_t channels, const void* scale, const void* shift,
            const void* residual, double negative_slope, void* out) {
  const T* __restrict x = static_cast<const T*>(feats);
  const T* __restrict y = static_cast<const T*>(residual);
  const Sum<T>* __restrict a = static_cast<const Sum<T>*>(scale);
  const Sum<T>* __restrict b = static_cast<const Sum<T>*>(shift);
  const Sum<T> slope = static_cast<Sum<T>>(negative_slope);
  T* __restrict to = static_cast<T*>(out);
  for (int64_t r = 0; r < rows; ++r, x += channels, to += channels) {
    if (y) {
      for (int64_t c = 0; c < channels; ++c) {
        const Sum<T> value = widen(x[c]) * a[c] + b[c] + widen(y[c]);
        narrow(value * (value < 0 ? slope : 1), to + c);
      }
      y += channels;
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        const Sum<T> value = widen(x[c]) * a[c] + b[c];
        narrow(value * (value < 0 ? slope : 1), to + c);
      }
    }
  }
}

// Calls body with grad(position), which passes the activation backwards. The factor is chosen, not
// the product: the compiler makes vectors of that.
template <typename T, typename Body>
inline void with_gradient(const void* grad, const void* out, double negative_slope, Body body) {
  const T* g = static_cast<const T*>(grad);
  const T* y = static_cast<const T*>(out);
  const Sum<T> slope = static_cast<Sum<T>>(negative_slope);
  if (y)
    body([=](int64_t at) { return widen(g[at]) * (widen(y[at]) > 0 ? 1 : slope); });
  else
    body([=](int64_t at) { return widen(g[at]); });
}

template <typename T>
void grad_moments(const void* grad, const void* out, double negative_slope, const void* feats,
                  int64_t rows, int64_t channels, const void* mean, void* sum, void* product) {
  using S = Sum<T>;
  const T* x = static_cast<const T*>(feats);
  const S* m = static_cast<const S*>(mean);
  S *total = static_cast<S*>(sum), *moment = static_cast<S*>(product);
  with_gradient<T>(grad, out, negative_slope, [=](auto g) {
    for (int64_t c = 0; c < channels; ++c) total[c] = moment[c] = 0;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      const int64_t at = r * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = at + c, j = i + channels, k = j + channels, l = k + channels;
        const S gi = g(i), gj = g(j), gk = g(k), gl = g(l), centre = m[c];
        total[c] += (gi + gj) + (gk + gl);
        moment[c] += (gi * (widen(x[i]) - centre) + gj * (widen(x[j]) - centre)) +
                     (gk * (widen(x[k]) - centre) + gl * (widen(x[l]) - centre));
      }
    }
    for (; r < rows; ++r)
      for (int64_t c = 0; c < channels; ++c) {
        const S value = g(r * channels + c);
        total[c] += value;
        moment[c] += value * (widen(x[r * channels + c]) - m[c]);
      }
  });
}

template <typename T>
void grad_affine(const void* grad, const void* out, double negative_slope, const void* feats,
                 int64_t rows, int64_t channels, const void* mean, const void* scale,
                 const void* slope, const void* shift, void* grad_feats, void* grad_residual) {
  const T* __restrict x = static_cast<const T*>(feats);
  const Sum<T>* __restrict m = static_cast<const Sum<T>*>(mean);
  const Sum<T>* __restrict a = static_cast<const Sum<T>*>(scale);
  const Sum<T>* __restrict b = static_cast<const Sum<T>*>(slope);
  const Sum<T>* __restrict d = static_cast<const Sum<T>*>(shift);
  T* __restrict to = static_cast<T*>(grad_feats);
  T* __restrict passed = static_cast<T*>(grad_residual);
  with_gradient<T>(grad, out, negative_slope, [=](auto g) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = r * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c)
        narrow(g(row + c) * a[c] + ((widen(x[row + c]) - m[c]) * b[c] + d[c]), to + row + c);
      if (passed) {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) narrow(g(row + c), passed + row + c);
      }
    }
  });
}

template <typename T>
constexpr RowKernels kernels_of() {
  return {sum<T>,          sum_wide<T>,  sum_in_place<T>, max<T>,
          max_in_place<T>, max_merge<T>, interpolate<T>,  narrow_all<T>,
          moments<T>,      affine<T>,    grad_moments<T>, grad_affine<T>};
}

}  // namespace

// In the order of Element.
const RowKernels* row_kernels() {
  static constexpr RowKernels KERNELS[] = {kernels_of<float>(), kernels_of<BFloat16>(),
                                           kernels_of<Float16>(), kernels_of<double>()};
  return KERNELS;
}

}  // namespace pointlib::POINTLIB_SET
