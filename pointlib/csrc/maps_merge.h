// Merging sorted outputs with sorted inputs: which of them meet.
#pragma once

#include "keys.h"

namespace pointlib {

// An output, and the first input at or after the key it looks for.
struct Meeting {
  int32_t in, out;
};

constexpr int LANES = 4;
constexpr Key PAST_ALL_KEYS = Key{1} << 63;

// Outputs [begin, end) look for their keys + offset; `found` has room for end - begin + 1.
struct Lane {
  Key offset;
  int64_t begin, end;
  Meeting* found;
  int64_t count;
};

// Finds the outputs whose input is less than `depth` past the key, in `number` <= LANES lanes.
// Behind the in_keys, which ascend, stands PAST_ALL_KEYS.
void merge(const Key* in_keys, int64_t num_in, const Key* out_keys, Key depth, Lane* lanes,
           int number);

}  // namespace pointlib
