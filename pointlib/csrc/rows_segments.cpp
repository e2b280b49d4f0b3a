// Sorts pairs by output row, by counting. Each thread owns a range of outputs and passes over all
// pairs, so the result is the same for any number of threads.
#include <algorithm>
#include <limits>
#include <vector>

#include "rows.h"

namespace pointlib {

namespace {

template <typename T>
bool in_range(const T* rows, int64_t count, int64_t limit, int threads) {
  bool good = true;
#pragma omp parallel for num_threads(threads) reduction(&& : good) if (threads > 1)
  for (int64_t part = 0; part < threads; ++part) {
    const int64_t from = count * part / threads, to = count * (part + 1) / threads;
    T low = 0, high = -1;
    for (int64_t p = from; p < to; ++p) {
      low = std::min(low, rows[p]);
      high = std::max(high, rows[p]);
    }
    good = good && low >= -1 && high < limit;
  }
  return good;
}

struct Divide {
  int64_t each;
  bool none(int64_t) const { return false; }
  int64_t operator()(int64_t p) const { return each == 1 ? p : p / each; }
};
template <typename T>
struct LookUp {
  const T* rows;
  bool none(int64_t p) const { return rows[p] < 0; }
  int64_t operator()(int64_t p) const { return rows[p]; }
};

template <typename Body>
void with_index(const Index& index, Body body) {
  if (!index.rows)
    body(Divide{index.each});
  else if (index.bytes == 4)
    body(LookUp<int32_t>{static_cast<const int32_t*>(index.rows)});
  else
    body(LookUp<int64_t>{static_cast<const int64_t*>(index.rows)});
}

// `next` is starts + 1: next[o] counts, then is where the next pair of o goes, then where o ends.
template <typename In, typename Out>
void count_sort(In in, Out out, int64_t pairs, int64_t num_out, int threads, int32_t* next,
                int32_t* source, int32_t* pair) {
  std::vector<int64_t> base(threads + 1, 0);
  const auto first = [&](int64_t part) { return num_out * part / threads; };
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static, 1)
    for (int64_t part = 0; part < threads; ++part) {
      const int64_t low = first(part), span = first(part + 1) - low;
      std::fill_n(next + low, span, 0);
      for (int64_t p = 0; p < pairs; ++p) {
        const int64_t o = out(p);
        if (static_cast<uint64_t>(o - low) < static_cast<uint64_t>(span) && !in.none(p)) ++next[o];
      }
      for (int64_t o = low; o < low + span; ++o) base[part + 1] += next[o];
    }
#pragma omp single
    for (int part = 0; part < threads; ++part) base[part + 1] += base[part];
#pragma omp for schedule(static, 1)
    for (int64_t part = 0; part < threads; ++part) {
      const int64_t low = first(part), span = first(part + 1) - low;
      int32_t at = static_cast<int32_t>(base[part]);
      for (int64_t o = low; o < low + span; ++o) {
        const int32_t count = next[o];
        next[o] = at;
        at += count;
      }
      for (int64_t p = 0; p < pairs; ++p) {
        const int64_t o = out(p);
        if (static_cast<uint64_t>(o - low) < static_cast<uint64_t>(span) && !in.none(p)) {
          if (pair) pair[next[o]] = static_cast<int32_t>(p);
          source[next[o]++] = static_cast<int32_t>(in(p));
        }
      }
    }
  }
}

}  // namespace

bool rows_in_range(const Index& index, int64_t count, int64_t limit, int64_t threads) {
  const int used = threads_for(count, threads);
  if (!index.rows) return count == 0 || (count - 1) / index.each < limit;
  if (index.bytes == 4)
    return in_range(static_cast<const int32_t*>(index.rows), count, limit, used);
  return in_range(static_cast<const int64_t*>(index.rows), count, limit, used);
}

void Segments::build(const Index& in, const Index& out, int64_t pairs, int64_t num_in,
                     int64_t num_out, bool keep_pair, int64_t threads) {
  if (std::max(pairs, num_in) > std::numeric_limits<int32_t>::max())
    throw std::length_error("pairs and source rows must be fewer than 2^31; reduce them in parts");
  starts = scratch<int32_t>(num_out + 1);
  source = scratch<int32_t>(pairs);
  if (keep_pair) pair = scratch<int32_t>(pairs);
  starts[0] = 0;
  with_index(in, [&](auto in_rows) {
    with_index(out, [&](auto out_rows) {
      count_sort(in_rows, out_rows, pairs, num_out, threads_for(pairs, threads), starts.get() + 1,
                 source.get(), pair.get());
    });
  });
}

}  // namespace pointlib
