// Neighbours in clouds of points: the inner loops, compiled once for each instruction set. The
// squared distance is fma(dz, dz, fma(dy, dy, dx * dx)) in float32 wherever it is computed, so that
// every implementation and every device finds the same neighbours.
#pragma once

#include <cstdint>

namespace pointlib {

// Planes of x, y and z.
struct Cloud {
  const float* coords;
  int64_t count;

  const float* plane(int axis) const { return coords + axis * count; }
};

struct NeighborKernels {
  // Starts nearest[i] at infinity; at -1 where point i has a coordinate that is not finite.
  void (*start)(const Cloud& cloud, float* nearest);
  // nearest[i] = min(nearest[i], distance to point `from`); returns the first i of the largest.
  int64_t (*farthest)(const Cloud& cloud, int64_t from, float* nearest);
  // The first `most` points of less than `radius2` to `center`, in their order; returns how many.
  int64_t (*within)(const Cloud& cloud, const float* center, float radius2, int64_t most,
                    int64_t* found);
  // The k nearest to `center`, by distance and then by number; infinity and -1 where there are
  // fewer.
  void (*nearest)(const Cloud& cloud, const float* center, int64_t k, float* dist2, int64_t* index);
};

}  // namespace pointlib
