// Farthest point sampling, ball query and nearest neighbours in batches of clouds. Coordinates are
// planes: x of all points of a cloud, then y, then z.
#include "neighbors.h"

#include <algorithm>

#include "engine.h"
#include "kernels.h"
#include "memory.h"

using namespace pointlib;

namespace {

// Threads worth starting for so many distances.
int threads_for(int64_t distances, int64_t threads) {
  constexpr int64_t LEAST = 1 << 15;
  return static_cast<int>(std::max<int64_t>(1, std::min(threads, distances / LEAST)));
}

// Calls body(cloud, center, row) for each of batch * num_centers centers, in rows.
template <typename Body>
void for_centers(const float* centers, const float* points, int64_t batch, int64_t num_centers,
                 int64_t count, int64_t threads, Body body) {
  const int used = threads_for(batch * num_centers * count, threads);
#pragma omp parallel for num_threads(used) schedule(dynamic, 64) if (used > 1)
  for (int64_t row = 0; row < batch * num_centers; ++row) {
    const int64_t b = row / num_centers;
    const float* from = centers + b * 3 * num_centers + row % num_centers;
    const float center[3] = {from[0], from[num_centers], from[2 * num_centers]};
    body(Cloud{points + b * 3 * count, count}, center, row);
  }
}

}  // namespace

// out (batch, samples): point 0 of each cloud, then again and again the point that is farthest from
// all before it, the lowest at a tie.
POINTLIB_API int64_t pl_farthest_point_sampling(const float* points, int64_t batch, int64_t count,
                                                int64_t samples, int64_t* out, int64_t threads) {
  return guarded([&]() -> int64_t {
    const NeighborKernels& kernels = *pointlib::kernels().neighbors;
    const int used = std::min<int>(threads_for(batch * count * samples, threads), batch);
    const int64_t stride = (count + 15) / 16 * 16;
    const auto distances = scratch<float>(std::max(used, 1) * stride);
#pragma omp parallel for num_threads(used) schedule(static, 1) if (used > 1)
    for (int64_t part = 0; part < used; ++part) {
      float* nearest = distances.get() + part * stride;
      for (int64_t b = part; b < batch; b += used) {
        const Cloud cloud = {points + b * 3 * count, count};
        int64_t* chosen = out + b * samples;
        kernels.start(cloud, nearest);
        for (int64_t s = 0; s < samples; ++s)
          chosen[s] = s == 0 ? 0 : kernels.farthest(cloud, chosen[s - 1], nearest);
      }
    }
    return 0;
  });
}

// out (batch, num_centers, most): the first points of each ball, the first of them again where
// there are fewer, -1 where there is none.
POINTLIB_API int64_t pl_ball_query(const float* centers, const float* points, int64_t batch,
                                   int64_t num_centers, int64_t count, float radius2, int64_t most,
                                   int64_t* out, int64_t threads) {
  return guarded([&]() -> int64_t {
    const NeighborKernels& kernels = *pointlib::kernels().neighbors;
    for_centers(centers, points, batch, num_centers, count, threads,
                [&](const Cloud& cloud, const float* center, int64_t row) {
                  int64_t* found = out + row * most;
                  const int64_t number = kernels.within(cloud, center, radius2, most, found);
                  std::fill(found + number, found + most, number > 0 ? found[0] : -1);
                });
    return 0;
  });
}

// dist2 and index (batch, num_queries, k): squared distances, ascending, and the points.
POINTLIB_API int64_t pl_knn(const float* queries, const float* points, int64_t batch,
                            int64_t num_queries, int64_t count, int64_t k, float* dist2,
                            int64_t* index, int64_t threads) {
  return guarded([&]() -> int64_t {
    const NeighborKernels& kernels = *pointlib::kernels().neighbors;
    if (k == 0) return 0;
    for_centers(queries, points, batch, num_queries, count, threads,
                [&](const Cloud& cloud, const float* center, int64_t row) {
                  kernels.nearest(cloud, center, k, dist2 + row * k, index + row * k);
                });
    return 0;
  });
}
