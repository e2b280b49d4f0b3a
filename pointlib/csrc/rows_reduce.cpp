// Sums and maxima of feature rows over pairs (source row, output row): scatter, pooling, and the
// transpose of devoxelization.
#include <algorithm>
#include <limits>
#include <vector>

#include "engine.h"
#include "rows.h"

using namespace pointlib;

namespace {

// Pairs of one output that are folded at once where sums are long; more are folded in pieces, side
// by side.
constexpr int64_t PIECE = 4096;
constexpr int64_t UNSPLIT = std::numeric_limits<int32_t>::max();

struct Reduction {
  const RowKernels& kernels;
  RowPairs rows;
  Index in, out;
  int64_t pairs, num_in, num_out;
  int64_t element_bytes, sum_bytes;  // of a value, and of what it is summed in
  int threads;

  int64_t channels() const { return rows.channels; }
};

Reduction reduction_of(int64_t element, const RowPairs& rows, const Index& in, const Index& out,
                       int64_t pairs, int64_t num_in, int64_t num_out, int64_t threads) {
  int64_t bytes = 0, sum_bytes = 0;
  with_element(element, [&](auto* type) {
    bytes = sizeof(*type);
    sum_bytes = sizeof(Sum<std::remove_pointer_t<decltype(type)>>);
  });
  return {row_kernels(element),
          rows,
          in,
          out,
          pairs,
          num_in,
          num_out,
          bytes,
          sum_bytes,
          threads_for((pairs + num_out) * rows.channels, threads)};
}

bool in_range(const Reduction& r) {
  return rows_in_range(r.in, r.pairs, r.num_in, r.threads) &&
         rows_in_range(r.out, r.pairs, r.num_out, r.threads);
}

// Calls body(first, rows) for each thread's share of the outputs.
template <typename Body>
void share_outputs(const Reduction& r, Body body) {
#pragma omp parallel for num_threads(r.threads) schedule(static, 1) if (r.threads > 1)
  for (int64_t part = 0; part < r.threads; ++part) {
    const int64_t first = r.num_out * part / r.threads;
    body(first, r.num_out * (part + 1) / r.threads - first);
  }
}

// Totals of all outputs: the output itself, or scratch where that is of a narrower type.
struct Totals {
  Scratch<char> storage;
  char* data;

  Totals(const Reduction& r, void* out) : data(static_cast<char*>(out)) {
    if (r.element_bytes == r.sum_bytes) return;
    storage = scratch<char>(r.num_out * r.channels() * r.sum_bytes);
    data = storage.get();
  }
};

// Folds the pairs of each output into a state of `state_bytes`: fold(state, from, to) starts one
// and takes pairs [from, to), merge(state, later) joins two, finish(state, output) writes. Outputs
// of more than `most` pairs are cut into pieces of that many.
template <typename Fold, typename Merge, typename Finish>
void reduce(const Reduction& r, const Segments& s, int64_t most, int64_t state_bytes, Fold fold,
            Merge merge, Finish finish) {
  struct Piece {
    int64_t out, from, to;
  };
  std::vector<Piece> pieces;
  for (int64_t o = 0; most != UNSPLIT && o < r.num_out; ++o)
    if (s.starts[o + 1] - s.starts[o] > most)
      for (int64_t from = s.starts[o]; from < s.starts[o + 1]; from += most)
        pieces.push_back({o, from, std::min<int64_t>(from + most, s.starts[o + 1])});
  const int64_t num_pieces = pieces.size(), stride = (state_bytes + 63) / 64 * 64;
  const auto states = scratch<char>((r.threads + num_pieces) * stride);
  const auto piece_state = [&](int64_t p) { return states.get() + (r.threads + p) * stride; };
  const int64_t block = std::max<int64_t>(1, 65536 / std::max<int64_t>(state_bytes, 1));
#pragma omp parallel num_threads(r.threads) if (r.threads > 1)
  {
#pragma omp for schedule(dynamic)
    for (int64_t p = 0; p < num_pieces; ++p) fold(piece_state(p), pieces[p].from, pieces[p].to);
#pragma omp for schedule(static, 1)
    for (int64_t slot = 0; slot < r.threads; ++slot) {
      char* state = states.get() + slot * stride;
      for (int64_t first = slot * block; first < r.num_out; first += r.threads * block)
        for (int64_t o = first; o < std::min(first + block, r.num_out); ++o)
          if (s.starts[o + 1] - s.starts[o] <= most) {
            fold(state, s.starts[o], s.starts[o + 1]);
            finish(state, o);
          }
    }
#pragma omp for schedule(dynamic)
    for (int64_t p = 0; p < num_pieces; ++p) {
      if (p > 0 && pieces[p - 1].out == pieces[p].out) continue;
      for (int64_t q = p + 1; q < num_pieces && pieces[q].out == pieces[p].out; ++q)
        merge(piece_state(p), piece_state(q));
      finish(piece_state(p), pieces[p].out);
    }
  }
}

// Source rows that come in order are read once, in that order, and added in place.
void sum_in_place(const Reduction& r, void* out) {
  const Totals totals(r, out);
  const int64_t row_bytes = r.channels() * r.sum_bytes;
  share_outputs(r, [&](int64_t first, int64_t rows) {
    char* to = totals.data + first * row_bytes;
    std::fill_n(to, rows * row_bytes, char(0));
    r.kernels.sum_in_place(r.rows, r.out.rows, r.out.bytes, r.in.each, r.pairs, first, rows, to);
    if (totals.storage)
      r.kernels.narrow(to, rows * r.channels(),
                       static_cast<char*>(out) + first * r.channels() * r.element_bytes);
  });
}

void sum_sorted(const Reduction& r, void* out) {
  Segments s;
  s.build(r.in, r.out, r.pairs, r.num_in, r.num_out, r.rows.weights != nullptr, r.threads);
  const int64_t bytes = r.channels() * r.sum_bytes;
  reduce(
      r, s, UNSPLIT, bytes,
      [&](char* total, int64_t from, int64_t to) {
        std::fill_n(total, bytes, char(0));
        r.kernels.sum(r.rows, s.source.get() + from, s.pair_from(from), to - from, total);
      },
      [](char*, const char*) {},
      [&](const char* total, int64_t o) {
        r.kernels.narrow(total, r.channels(),
                         static_cast<char*>(out) + o * r.channels() * r.element_bytes);
      });
}

template <typename T>
void sum_wide(const Reduction& r, T* out) {
  Segments s;
  s.build(r.in, r.out, r.pairs, r.num_in, r.num_out, r.rows.weights != nullptr, r.threads);
  const int64_t channels = r.channels();
  reduce(
      r, s, PIECE, channels * int64_t(sizeof(double)),
      [&](char* state, int64_t from, int64_t to) {
        double* total = reinterpret_cast<double*>(state);
        std::fill_n(total, channels, 0.0);
        r.kernels.sum_wide(r.rows, s.source.get() + from, s.pair_from(from), to - from, total);
      },
      [=](char* state, const char* later) {
        for (int64_t c = 0; c < channels; ++c)
          reinterpret_cast<double*>(state)[c] += reinterpret_cast<const double*>(later)[c];
      },
      [=](const char* state, int64_t o) {
        for (int64_t c = 0; c < channels; ++c)
          narrow(reinterpret_cast<const double*>(state)[c], out + o * channels + c);
      });
}

void max_in_place(const Reduction& r, void* out, int64_t* argmax) {
  const Totals totals(r, out);
  const int64_t channels = r.channels();
  share_outputs(r, [&](int64_t first, int64_t rows) {
    char* best = totals.data + first * channels * r.sum_bytes;
    int64_t* row = argmax + first * channels;
    std::fill_n(best, rows * channels * r.sum_bytes, char(0));
    std::fill_n(row, rows * channels, int64_t(-1));
    r.kernels.max_in_place(r.rows, r.out.rows, r.out.bytes, r.pairs, first, rows, best, row);
    if (totals.storage)
      r.kernels.narrow(best, rows * channels,
                       static_cast<char*>(out) + first * channels * r.element_bytes);
  });
}

void max_sorted(const Reduction& r, void* out, int64_t* argmax) {
  Segments s;
  s.build(r.in, r.out, r.pairs, r.num_in, r.num_out, false, r.threads);
  const int64_t channels = r.channels();
  // A state holds the rows, then the values.
  const auto values = [=](auto* state) { return state + channels * int64_t(sizeof(int64_t)); };
  reduce(
      r, s, PIECE, channels * (r.sum_bytes + int64_t(sizeof(int64_t))),
      [&](char* state, int64_t from, int64_t to) {
        int64_t* row = reinterpret_cast<int64_t*>(state);
        std::fill_n(row, channels, int64_t(-1));
        std::fill_n(values(state), channels * r.sum_bytes, char(0));
        r.kernels.max(r.rows, s.source.get() + from, to - from, values(state), row);
      },
      [&](char* state, const char* later) {
        r.kernels.max_merge(values(later), reinterpret_cast<const int64_t*>(later), channels,
                            values(state), reinterpret_cast<int64_t*>(state));
      },
      [&](const char* state, int64_t o) {
        r.kernels.narrow(values(state), channels,
                         static_cast<char*>(out) + o * channels * r.element_bytes);
        std::copy_n(reinterpret_cast<const int64_t*>(state), channels, argmax + o * channels);
      });
}

}  // namespace

// out[out_index[p]] += weights[p] * src[in_index[p]] for every pair, in their order; without
// in_index, pair p takes row p / each. Index entries have index_bytes; weights are float64 where
// src is and float32 elsewhere, or null for 1. `wide` sums carry float64. Returns 1 where an index
// is out of range.
POINTLIB_API int64_t pl_sum_rows(int64_t element, const void* src, int64_t num_in, int64_t channels,
                                 const void* in_index, int64_t each, const void* out_index,
                                 int64_t index_bytes, const void* weights, int64_t pairs,
                                 int64_t wide, void* out, int64_t num_out, int64_t threads) {
  return guarded([&]() -> int64_t {
    const Reduction r =
        reduction_of(element, {src, channels, weights}, {in_index, index_bytes, each},
                     {out_index, index_bytes, 1}, pairs, num_in, num_out, threads);
    if (!in_range(r)) return 1;
    prefer_large_pages(out, num_out * channels * r.element_bytes);
    if (wide)
      with_element(element, [&](auto* type) {
        sum_wide(r, static_cast<std::remove_pointer_t<decltype(type)>*>(out));
      });
    else if (in_index)
      sum_sorted(r, out);
    else
      sum_in_place(r, out);
    return 0;
  });
}

// The largest src[in_index[p]] of each output and channel, and its row: 0 and -1 where there is no
// pair. Arguments and result as in pl_sum_rows; `wide` is for many rows into few.
POINTLIB_API int64_t pl_max_rows(int64_t element, const void* src, int64_t num_in, int64_t channels,
                                 const void* in_index, const void* out_index, int64_t index_bytes,
                                 int64_t pairs, int64_t wide, void* out, int64_t* argmax,
                                 int64_t num_out, int64_t threads) {
  return guarded([&]() -> int64_t {
    const Reduction r = reduction_of(element, {src, channels, nullptr}, {in_index, index_bytes, 1},
                                     {out_index, index_bytes, 1}, pairs, num_in, num_out, threads);
    if (!in_range(r)) return 1;
    prefer_large_pages(out, num_out * channels * r.element_bytes);
    prefer_large_pages(argmax, num_out * channels * int64_t(sizeof(int64_t)));
    if (in_index || wide)
      max_sorted(r, out, argmax);
    else
      max_in_place(r, out, argmax);
    return 0;
  });
}
