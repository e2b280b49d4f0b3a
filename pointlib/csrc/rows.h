// Reductions of feature rows: pairs (source row, output row) sorted by output, so that every output
// row has one owner and one order of summation whatever the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "kernels.h"
#include "memory.h"
#include "rows_element.h"

namespace pointlib {

inline const RowKernels& row_kernels(int64_t element) {
  if (element < 0 || element > 3) throw std::runtime_error("element must be 0 to 3");
  return kernels().rows[element];
}

// Calls body with a null pointer of the element's type.
template <typename Body>
void with_element(int64_t element, Body body) {
  switch (static_cast<Element>(element)) {
    case Element::FLOAT32:
      return body(static_cast<float*>(nullptr));
    case Element::BFLOAT16:
      return body(static_cast<BFloat16*>(nullptr));
    case Element::FLOAT16:
      return body(static_cast<Float16*>(nullptr));
    case Element::FLOAT64:
      return body(static_cast<double*>(nullptr));
  }
  throw std::runtime_error("element must be 0 to 3");
}

// Threads worth starting for so many operations on elements.
inline int threads_for(int64_t work, int64_t threads) {
  constexpr int64_t LEAST = 1 << 14;
  return static_cast<int>(std::max<int64_t>(1, std::min(threads, work / LEAST)));
}

// Row numbers of 4 or 8 bytes; without any, row p is p / each.
struct Index {
  const void* rows;
  int64_t bytes, each;
};

// Pairs by output row, in their order within one; pairs with a row of -1 are left out.
struct Segments {
  Scratch<int32_t> starts;  // (num_out + 1,) first pair of each output
  Scratch<int32_t> source;  // source row of each pair
  Scratch<int32_t> pair;    // its number before sorting, where that was asked for

  const int32_t* pair_from(int64_t at) const { return pair ? pair.get() + at : nullptr; }

  // Rows must be in range. Throws from 2^31 pairs or source rows on.
  void build(const Index& in, const Index& out, int64_t pairs, int64_t num_in, int64_t num_out,
             bool keep_pair, int64_t threads);
};

// Whether all rows are -1 or in [0, limit).
bool rows_in_range(const Index& index, int64_t count, int64_t limit, int64_t threads);

}  // namespace pointlib
