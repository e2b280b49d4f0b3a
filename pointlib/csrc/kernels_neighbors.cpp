// Loops over clouds of points, compiled once for each instruction set as kernels.cpp is.
#include <cstring>

#include "kernels.h"
#include "neighbors.h"

namespace pointlib::POINTLIB_SET {

namespace {

#include "kernels_vector.inc"

// Points whose distances are computed together.
constexpr int64_t BLOCK = 64;
constexpr float INF = __builtin_inff();

inline void distances(const Cloud& cloud, int64_t first, int64_t count, const float* center,
                      float* dist2) {
  const float* __restrict x = cloud.plane(0) + first;
  const float* __restrict y = cloud.plane(1) + first;
  const float* __restrict z = cloud.plane(2) + first;
  const float cx = center[0], cy = center[1], cz = center[2];
  float* __restrict to = dist2;
  for (int64_t i = 0; i < count; ++i) {
    const float dx = x[i] - cx, dy = y[i] - cy, dz = z[i] - cz;
    to[i] = __builtin_fmaf(dz, dz, __builtin_fmaf(dy, dy, dx * dx));
  }
}

// Calls body(first, dist2) for each block of points, in order, until it returns false. Distances
// behind the last point are infinite.
template <typename Body>
inline void for_blocks(const Cloud& cloud, const float* center, Body body) {
  alignas(64) float dist2[BLOCK];
  int64_t first = 0;
  for (; first + BLOCK <= cloud.count; first += BLOCK) {
    distances(cloud, first, BLOCK, center, dist2);
    if (!body(first, dist2)) return;
  }
  if (first == cloud.count) return;
  for (int64_t i = 0; i < BLOCK; ++i) dist2[i] = INF;
  distances(cloud, first, cloud.count - first, center, dist2);
  body(first, dist2);
}

inline bool any_below(const float* dist2, float limit) {
  typedef int32_t Int __attribute__((vector_size(4 * WIDTH)));
  Int below = {};
  for (int64_t i = 0; i < BLOCK; i += WIDTH) below |= load(dist2 + i) < broadcast(limit);
  int32_t any = 0;
  for (int lane = 0; lane < WIDTH; ++lane) any |= below[lane];
  return any != 0;
}

inline void point_of(const Cloud& cloud, int64_t row, float* center) {
  for (int axis = 0; axis < 3; ++axis) center[axis] = cloud.plane(axis)[row];
}

void start(const Cloud& cloud, float* nearest) {
  const float *x = cloud.plane(0), *y = cloud.plane(1), *z = cloud.plane(2);
  for (int64_t i = 0; i < cloud.count; ++i) {
    const float none = x[i] * 0 + y[i] * 0 + z[i] * 0;  // NaN where one of them is not finite
    nearest[i] = none == 0 ? INF : -1;
  }
}

// The largest value so far, and the number of its vector, for each lane.
struct Largest {
  typedef int32_t Int __attribute__((vector_size(4 * WIDTH)));
  Float value = broadcast(-1);
  Int vector = {};

  void take(Float other, int32_t number) {
    const Int larger = other > value;
    value = larger ? other : value;
    vector = larger ? number - Int{} : vector;
  }
  int64_t first() const {
    float best = value[0];
    int64_t at = int64_t(vector[0]) * WIDTH;
    for (int lane = 1; lane < WIDTH; ++lane) {
      const int64_t other = int64_t(vector[lane]) * WIDTH + lane;
      if (value[lane] > best || (value[lane] == best && other < at)) {
        best = value[lane];
        at = other;
      }
    }
    return best < 0 ? 0 : at;
  }
};

int64_t farthest(const Cloud& cloud, int64_t from, float* nearest) {
  float center[3];
  point_of(cloud, from, center);
  Largest largest;
  for_blocks(cloud, center, [&](int64_t first, const float* dist2) {
    float* to = nearest + first;
    const int64_t rest = cloud.count - first;
    if (rest >= BLOCK) {
      for (int64_t i = 0; i < BLOCK; i += WIDTH) {
        const Float old = load(to + i), now = load(dist2 + i);
        const Float least = now < old ? now : old;
        store(to + i, least);
        largest.take(least, static_cast<int32_t>((first + i) / WIDTH));
      }
      return true;
    }
    alignas(64) float least[BLOCK];
    for (int64_t i = 0; i < BLOCK; ++i) least[i] = -1;
    for (int64_t i = 0; i < rest; ++i) least[i] = to[i] = dist2[i] < to[i] ? dist2[i] : to[i];
    for (int64_t i = 0; i < BLOCK; i += WIDTH)
      largest.take(load(least + i), static_cast<int32_t>((first + i) / WIDTH));
    return true;
  });
  return largest.first();
}

int64_t within(const Cloud& cloud, const float* center, float radius2, int64_t most,
               int64_t* found) {
  int64_t count = 0;
  for_blocks(cloud, center, [&](int64_t first, const float* dist2) {
    if (!any_below(dist2, radius2)) return true;
    for (int64_t i = 0; i < BLOCK; ++i) {
      if (!(dist2[i] < radius2)) continue;
      if (count == most) return false;
      found[count++] = first + i;
    }
    return count < most;
  });
  return count;
}

void nearest(const Cloud& cloud, const float* center, int64_t k, float* dist2, int64_t* index) {
  for (int64_t i = 0; i < k; ++i) {
    dist2[i] = INF;
    index[i] = -1;
  }
  for_blocks(cloud, center, [&](int64_t first, const float* block) {
    if (!any_below(block, dist2[k - 1])) return true;
    for (int64_t i = 0; i < BLOCK; ++i) {
      const float distance = block[i];
      if (!(distance < dist2[k - 1])) continue;
      int64_t place = k - 1;
      for (; place > 0 && distance < dist2[place - 1]; --place) {
        dist2[place] = dist2[place - 1];
        index[place] = index[place - 1];
      }
      dist2[place] = distance;
      index[place] = first + i;
    }
    return true;
  });
}

}  // namespace

const NeighborKernels* neighbor_kernels() {
  static constexpr NeighborKernels KERNELS = {start, farthest, within, nearest};
  return &KERNELS;
}

}  // namespace pointlib::POINTLIB_SET
