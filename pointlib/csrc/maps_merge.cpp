// The merge that every kernel map is made of. One step of it needs the answer of the step before,
// and a processor that guesses that answer is often wrong; so there is no branch in a step, and
// several merges advance side by side.
#include "maps_merge.h"

namespace pointlib {

namespace {

constexpr int64_t SPARSE = 16;  // inputs passed for each output, from where on searching pays

// A merge between two steps: outputs before `step - in` and inputs before `in` are done with.
struct State {
  int64_t in, step, last_step, count;

  // Moves one output or one input on.
  void advance(const Key* in_keys, const Key* out_keys, Key offset, Key depth, Meeting* found) {
    const int64_t out = step - in;
    const Key past = in_keys[in] - out_keys[out] - offset;
    found[count] = {static_cast<int32_t>(in), static_cast<int32_t>(out)};
    count += past < depth;
    in += past >> 63;  // 1 if the input comes before the key looked for
    step++;
  }
};

// The states of lanes before their first step.
State start(const Key* in_keys, int64_t num_in, const Key* out_keys, const Lane& lane) {
  const Key* end = in_keys + num_in;
  const Key* first = std::lower_bound(in_keys, end, out_keys[lane.begin] + lane.offset);
  const Key* last = std::lower_bound(first, end, out_keys[lane.end - 1] + lane.offset);
  return {first - in_keys, first - in_keys + lane.begin, last - in_keys + lane.end, 0};
}

void search(const Key* in_keys, int64_t num_in, const Key* out_keys, Key depth, Lane& lane) {
  const Key* at = in_keys;
  lane.count = 0;
  for (int64_t out = lane.begin; out < lane.end; out++) {
    const Key target = out_keys[out] + lane.offset;
    at = std::lower_bound(at, in_keys + num_in, target);
    lane.found[lane.count] = {static_cast<int32_t>(at - in_keys), static_cast<int32_t>(out)};
    lane.count += *at - target < depth;
  }
}

template <int NUMBER>
void merge_together(const Key* in_keys, int64_t num_in, const Key* out_keys, Key depth,
                    Lane* lanes) {
  State states[NUMBER];
  int64_t common = INT64_MAX;
  for (int i = 0; i < NUMBER; i++) {
    states[i] = start(in_keys, num_in, out_keys, lanes[i]);
    common = std::min(common, states[i].last_step - states[i].step);
  }
  for (int64_t step = 0; step < common; step++) {
#pragma GCC unroll 4
    for (int i = 0; i < NUMBER; i++) {
      states[i].advance(in_keys, out_keys, lanes[i].offset, depth, lanes[i].found);
    }
  }
  for (int i = 0; i < NUMBER; i++) {
    while (states[i].step < states[i].last_step) {
      states[i].advance(in_keys, out_keys, lanes[i].offset, depth, lanes[i].found);
    }
    lanes[i].count = states[i].count;
  }
}

}  // namespace

void merge(const Key* in_keys, int64_t num_in, const Key* out_keys, Key depth, Lane* lanes,
           int number) {
  const State state = start(in_keys, num_in, out_keys, lanes[0]);
  if (state.last_step - state.step > SPARSE * (lanes[0].end - lanes[0].begin)) {
    for (int i = 0; i < number; i++) search(in_keys, num_in, out_keys, depth, lanes[i]);
  } else if (number == LANES) {
    merge_together<LANES>(in_keys, num_in, out_keys, depth, lanes);
  } else {
    for (int i = 0; i < number; i++) {
      merge_together<1>(in_keys, num_in, out_keys, depth, lanes + i);
    }
  }
}

}  // namespace pointlib
